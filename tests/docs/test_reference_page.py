"""docs/reference.md has every public name, and the docstrings that it shows say what its readers need."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
from importlib import import_module
from typing import Any

import pytest

import pagedopt
from tools.page_session import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
NAMES = [name for name in pagedopt.__all__ if name != "__version__"]
CALLED = [name for name in NAMES if not name.endswith(("Error", "Stats", "InBackward", "Backend", "CostPlan"))]


def documented(docstring: str, section_name: str = "Args") -> set[str]:
    """Return the names in a section, each on a line of its own."""
    section = re.search(rf"^{section_name}:\n((?:    .*\n|\n)*)", docstring + "\n", flags=re.MULTILINE)
    return set(re.findall(r"^    (\w+):", section[1], flags=re.MULTILINE)) if section else set()


def test_the_reference_has_every_public_name_and_no_other() -> None:
    shown = re.findall(r"^::: pagedopt\.(\w+)$", REFERENCE, flags=re.MULTILINE)
    assert sorted(shown) == sorted(NAMES)


def shown_records() -> dict[str, type]:
    """Return every dataclass and named tuple that the reference shows, by its path."""
    shown = {path: resolved(path) for path in re.findall(r"^::: ([\w.]+)$", REFERENCE, flags=re.MULTILINE)}
    return {path: found for path, found in shown.items() if field_names(found)}


def resolved(path: str) -> Any:
    if path.startswith("pagedopt.integrations.transformers"):
        return None  # needs transformers, and shows no record
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def field_names(found: Any) -> list[str]:
    if dataclasses.is_dataclass(found):
        return [field.name for field in dataclasses.fields(found)]
    return list(getattr(found, "_fields", ()))


@pytest.mark.parametrize("path", shown_records())
def test_every_field_of_a_record_is_documented_by_its_own_name(path: str) -> None:
    """A line for two names at once would be shown as one name and a type."""
    record = shown_records()[path]
    told = re.findall(r"^    (\w[\w, ]*):", (inspect.getdoc(record) or "").partition("Attributes:\n")[2], re.MULTILINE)
    assert told == field_names(record)


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_documented_and_no_other(name: str) -> None:
    """Tools that read sources (editors, the reference) see docstrings, and not what a program puts together."""
    public: Any = getattr(pagedopt, name)
    told = documented(inspect.getdoc(public) or "")
    taken = set(inspect.signature(public).parameters)
    if not told and isinstance(public, type) and public.__bases__[0].__name__ in CALLED:
        assert f"`{public.__bases__[0].__name__}`" in (public.__doc__ or "")
    elif len(taken) > 1 or told:
        assert told == taken


@pytest.mark.parametrize("name", re.findall(r"^::: (pagedopt\.\S+)$", REFERENCE, flags=re.MULTILINE))
def test_every_attribute_of_what_is_returned_is_documented(name: str) -> None:
    public: Any = pkgutil.resolve_name(name)
    fields = getattr(public, "__dataclass_fields__", None) or getattr(public, "_fields", None)
    if fields:
        assert documented(inspect.getdoc(public) or "", "Attributes") == set(fields)


def test_both_signatures_are_told_in_the_same_words() -> None:
    resident = (pagedopt.AdamW.__doc__ or "").splitlines()
    paged = (pagedopt.PagedAdamW.__doc__ or "").splitlines()
    assert [line for line in resident[1:] if "is_paged:" not in line] == paged[1:]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Error")])
def test_every_error_is_in_the_troubleshooting(name: str) -> None:
    assert f"`{name}`" in TROUBLES
