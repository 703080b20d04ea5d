"""docs/integrations: every page begins with what to change, and every link leads somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import pagedopt

DOCS = Path(__file__).parents[2] / "docs"
WAYS_IN = sorted(page for page in (DOCS / "integrations").glob("*.md") if page.name != "README.md")

each_way = pytest.mark.parametrize("page", WAYS_IN, ids=lambda page: page.stem)


@each_way
def test_a_page_begins_with_the_lines_to_change(page: Path) -> None:
    """The title, at most a name of what one comes from, and then a diff: nothing is to be read before it."""
    before, _, diff = page.read_text().partition("```diff\n")
    assert all(line.startswith("#") for line in before.split("\n") if line)
    lines = diff.partition("```")[0].splitlines()
    assert any(line.startswith("-") for line in lines)
    assert 1 <= sum(line.startswith("+") for line in lines) <= 2


@each_way
def test_every_argument_in_a_changed_line_is_one(page: Path) -> None:
    accepted = set(inspect.signature(pagedopt.AdamW).parameters)
    words = re.compile(r"(\w+)(?:=|\": |: )")
    theirs = {
        "optimizer",
        "model",
        "trainer",
        "optimizer_cls_and_kwargs",
        "paged_adamw",
        "plugins",
        "name",
        "_component_",
    }
    for line in page.read_text().splitlines():
        if line.startswith("+"):
            assert {word for word in words.findall(line) if not word[0].isupper()} <= accepted | theirs, line


def test_every_way_in_is_in_the_list() -> None:
    listed = set(re.findall(r"\((\S+)\.md\)", (DOCS / "integrations" / "README.md").read_text()))
    assert {page.stem for page in WAYS_IN} <= listed


def anchors(page: Path) -> set[str]:
    """Return the headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*WAYS_IN, DOCS / "integrations" / "README.md", DOCS / "compatibility.md"], ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link
