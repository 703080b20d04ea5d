"""Every block of docs/checkpoints.md runs, in its order, and does what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import pagedopt
from pagedopt.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")
MIB = 1 << 20


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the page's program has made, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="as this optimizer's class says") as said:
        exec("\n".join(blocks("python")), made)
    assert len(said) == 1
    return made


def test_the_program_of_the_page_resumes_and_exports(names: dict[str, Any]) -> None:
    optimizer, resumed, wide = (names[name] for name in ("optimizer", "resumed", "wide"))
    param = names["model"].weight
    assert torch.equal(resumed.state[param]["exp_avg"], optimizer.state[param]["exp_avg"])
    assert resumed.memory_stats().budget_bytes == wide.memory_stats().budget_bytes == MIB
    assert wide.state[param]["exp_avg"].dtype == torch.float32
    assert torch.equal(names["theirs"].state[param]["exp_avg"], wide.state[param]["exp_avg"])
    assert names["for_bitsandbytes"]["state"][0]["state1"].dtype == torch.uint8


def test_the_commands_of_the_page_end_well(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (console,) = blocks("console")
    for line in console.splitlines():
        command = shlex.split(line.removeprefix("$ "))
        assert command.pop(0) == "pagedopt"
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code, (line, capsys.readouterr().err)
    loaded = names["new_optimizer"](pagedopt.PagedAdamW32bit)
    pagedopt.load(loaded, "converted")
    assert list(loaded.state_dict()["state"]) == [0, 1]
