"""docs/plan.md names what `pagedopt plan` knows."""

from __future__ import annotations

from pathlib import Path

from pagedopt.costs.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


def test_the_page_names_the_families_that_are_known_without_transformers() -> None:
    said = " ".join(PAGE.read_text(encoding="utf-8").split())

    assert f"are known: {', '.join(FAMILIES[:-1])} and {FAMILIES[-1]}." in said
