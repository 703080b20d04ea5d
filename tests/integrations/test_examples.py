"""The examples run as a person runs them, and do what they say."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for package in ("transformers", "datasets", "trl", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'pagedopt[hf]'")

from small import assert_paged, assert_same, everything

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> SimpleNamespace:
    """Return what an example defines."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the command line."""
    return lambda *words: monkeypatch.setattr(sys, "argv", ["example", *map(str, words)])


@pytest.mark.framework("bitsandbytes", "`BitsAndBytesConfig(load_in_4bit=True)` for the base, ours for its adapters")
@pytest.mark.framework(
    "trl", "`SFTTrainer(optimizer_cls_and_kwargs=(PagedAdamW8bit, {...}))`, as in `examples/qlora_sft.py`"
)
def test_qlora_with_a_base_in_nf4_resumes_to_the_bit_and_paged(tmp_path: Path, arguments: Callable[..., None]) -> None:
    qlora = example("qlora_sft")

    def run(folder: Path, *words: str) -> Any:
        arguments("--output", folder, "--steps", "6", *words)
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


def test_qlora_of_20_steps_and_its_resume_take_seconds(tmp_path: Path, arguments: Callable[..., None]) -> None:
    """Processor time, so that what else runs does not count: `make qlora` is to end within a minute on any machine."""
    main = example("qlora_sft").main
    begin = time.process_time()
    arguments("--output", tmp_path)
    main()
    assert time.process_time() - begin < 30
    arguments("--output", tmp_path, "--resume", "--steps", "22")
    main()
    state = json.loads((tmp_path / "checkpoint-22" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [5, 10, 15, 20]
    assert state["global_step"] == 22


@pytest.mark.framework("transformers", "`Trainer(optimizer_cls_and_kwargs=...)`, as in `examples/full_finetune.py`")
def test_a_full_finetune_interrupted_and_resumed_is_the_same_to_the_bit(
    tmp_path: Path, arguments: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments("--output", tmp_path, "--steps", "4")
    with pytest.raises(SystemExit) as ended:
        example("full_finetune").main()
    assert ended.value.code == 0
    said = [int(word) for word in capsys.readouterr().out.splitlines()[-1].split() if word.isdigit()]
    same, tensors, resident, pages = said
    assert same == tensors
    assert resident < pages
