"""Every block of docs/watching.md runs, in its order, and does what the page says."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import pagedopt
from pagedopt.cli import main

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "watching.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def _train(optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the page's program has made, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "basicConfig", lambda: None)  # pytest's handlers stay as they are
    made: dict[str, Any] = {"model": torch.nn.Linear(1024, 512), "train": _train}
    try:
        for block in _blocks("python"):
            exec(block, made)
    finally:
        logging.getLogger("pagedopt").setLevel(logging.NOTSET)
    return made


def test_the_program_of_the_page_does_what_it_says(
    names: dict[str, Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pages = names["memory"].pages
    assert names["step"].hits + names["step"].faults == pages
    assert names["total"].hits + names["total"].faults == names["since"].hits + names["since"].faults == 3 * pages
    assert {f"pagedopt::{name}" for name in ("step", "update", "read", "write")} <= names["names"]
    assert names["names"] <= {f"pagedopt::{name}" for name in ("step", "update", "wait", "read", "write")}
    assert Path("trace.json").read_text().count('"name":"step"') == 10


def test_the_command_of_the_page_draws(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = _blocks("console")
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line.removeprefix("$ pagedopt ")))

    assert ended.value.code in (0, None)
    assert len(list(Path("pictures").iterdir())) == 6


def test_every_statistic_is_explained() -> None:
    for name in pagedopt.PagingStats.__dataclass_fields__:
        assert f"`{name}`" in PAGE


def test_every_picture_of_the_page_is_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\((pictures/[^)]+\.svg)\)", PAGE)

    assert len(pictures) == 3
    for picture in pictures:
        assert ElementTree.parse(DOCS / picture).getroot().tag.endswith("svg")
        assert (DOCS / picture).stat().st_size < 100_000


def test_every_range_and_every_slice_of_a_trace_is_named() -> None:
    for name in ("step", "update", "wait", "read", "write"):
        assert f"`pagedopt::{name}`" in PAGE
        assert f"`{name}`" in PAGE
