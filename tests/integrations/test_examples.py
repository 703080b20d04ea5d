"""The examples run as a person runs them, and do what they say."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

for package in ("transformers", "datasets", "trl", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'pagedopt[hf]'")

from small import assert_paged, assert_same, everything

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> object:
    """Set the command line."""
    return lambda *words: monkeypatch.setattr(sys, "argv", ["example", *map(str, words)])


@pytest.mark.framework(
    "trl", "`SFTTrainer(optimizer_cls_and_kwargs=(PagedAdamW8bit, {...}))`, as in `examples/qlora_sft.py`"
)
def test_qlora_with_a_base_in_nf4_resumes_to_the_bit_and_paged(tmp_path: Path, arguments: object) -> None:
    qlora = example("qlora_sft")

    def run(folder: Path, *words: str) -> object:
        arguments("--output", folder, "--steps", "6", *words)  # type: ignore[operator]
        parsed = qlora.parse_arguments()
        qlora.set_seed(0)
        trainer = qlora.new_trainer(parsed)
        trainer.train(resume_from_checkpoint=parsed.resume)
        return trainer

    unbroken = run(tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken" / "checkpoint-3", tmp_path / "interrupted" / "checkpoint-3")
    resumed = run(tmp_path / "interrupted", "--resume")

    assert_same(everything(unbroken.model, unbroken.optimizer), everything(resumed.model, resumed.optimizer))
    kinds = {type(module).__name__ for module in resumed.model.modules()}
    assert "Linear4bit" in kinds
    assert_paged(resumed.optimizer)


@pytest.mark.framework("transformers", "`Trainer(optimizer_cls_and_kwargs=...)`, as in `examples/full_finetune.py`")
def test_a_full_finetune_interrupted_and_resumed_is_the_same_to_the_bit(
    tmp_path: Path, arguments: object, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments("--output", tmp_path, "--steps", "4")  # type: ignore[operator]
    with pytest.raises(SystemExit) as ended:
        example("full_finetune").main()
    assert ended.value.code == 0
    said = [int(word) for word in capsys.readouterr().out.splitlines()[-1].split() if word.isdigit()]
    same, tensors, resident, pages = said
    assert same == tensors
    assert resident < pages
