"""docs/reference.md has every public name, and the docstrings that it shows say what its readers need."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import pagedopt
from tools.page_session import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
NAMES = [name for name in pagedopt.__all__ if name != "__version__"]
CALLED = [name for name in NAMES if not name.endswith(("Error", "Stats", "InBackward", "Backend", "CostPlan"))]


def documented_arguments(docstring: str) -> set[str]:
    """Return the names in the section `Args:`."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", flags=re.MULTILINE)
    return set(re.findall(r"^    (\w+):", section[1], flags=re.MULTILINE)) if section else set()


def test_the_reference_has_every_public_name_and_no_other() -> None:
    shown = re.findall(r"^::: pagedopt\.(\w+)$", REFERENCE, flags=re.MULTILINE)
    assert sorted(shown) == sorted(NAMES)


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_documented_and_no_other(name: str) -> None:
    """Tools that read sources (editors, the reference) see docstrings, and not what a program puts together."""
    public: Any = getattr(pagedopt, name)
    told = documented_arguments(inspect.getdoc(public) or "")
    taken = set(inspect.signature(public).parameters)
    if not told and isinstance(public, type) and public.__bases__[0].__name__ in CALLED:
        assert f"`{public.__bases__[0].__name__}`" in (public.__doc__ or "")
    elif len(taken) > 1 or told:
        assert told == taken


def test_both_signatures_are_told_in_the_same_words() -> None:
    resident = (pagedopt.AdamW.__doc__ or "").splitlines()
    paged = (pagedopt.PagedAdamW.__doc__ or "").splitlines()
    assert [line for line in resident[1:] if "is_paged:" not in line] == paged[1:]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Error")])
def test_every_error_is_in_the_troubleshooting(name: str) -> None:
    assert f"`{name}`" in TROUBLES
