"""docs/compatibility.md is what the tests say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "compatibility_page.py"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


def test_the_compatibility_page_is_current(tool: dict[str, Any]) -> None:
    written = tool["PAGE"].read_text(encoding="utf-8")
    assert written == tool["page"](), "python tools/compatibility_page.py writes it anew"


def test_every_framework_of_the_page_has_a_version_or_says_that_its_calls_are_made(tool: dict[str, Any]) -> None:
    for framework in tool["ORDER"]:
        assert tool["version_of"](framework).removesuffix(".")[-1].isdigit()
    assert "calls" in tool["version_of"]("axolotl")
