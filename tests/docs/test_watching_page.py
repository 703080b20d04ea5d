"""What the program of docs/watching.md leaves is what the page says it leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import pagedopt
from tools.page_session import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "watching.md").read_text(encoding="utf-8")


@pytest.fixture
def names(run_page: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_page("docs/watching.md")


def test_the_program_of_the_page_does_what_it_says(names: dict[str, Any]) -> None:
    pages = names["memory"].pages
    assert names["step"].hits + names["step"].faults == pages
    assert names["total"].hits + names["total"].faults == names["since"].hits + names["since"].faults == 3 * pages
    assert {f"pagedopt::{name}" for name in ("step", "update", "read", "write")} <= names["names"]
    assert names["names"] <= {f"pagedopt::{name}" for name in ("step", "update", "wait", "read", "write")}
    assert Path("trace.json").read_text().count('"name":"step"') == 10


def test_the_command_of_the_page_draws(names: dict[str, Any]) -> None:
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
