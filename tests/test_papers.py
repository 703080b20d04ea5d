"""What the papers promise is there: the commands, the table, the pins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==[^ ;]+( ; .+)?")


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", _read("Makefile"), flags=re.MULTILINE))


def _names(requirements: str) -> set[str]:
    """Return the packages that a requirements file names itself."""
    lines = _read(f"requirements/{requirements}").splitlines()
    return {re.split(r"[=<>;\[ ]", line)[0].lower() for line in lines if line and line[0] not in "#-"}


def test_every_module_has_its_room_in_the_architecture() -> None:
    rooms = _read("ARCHITECTURE.md").partition("\n## The rooms\n")[2].partition("\n## ")[0]
    packages, alone = rooms.partition("\nAlone stand ")[::2]
    shown = {
        name: set(re.findall(r"`(\w+)`", text))
        for name, text in re.findall(r"(?s)\*\*`(\w+)/`\*\*(.*?)(?=\n- |\Z)", packages)
    }
    there: dict[str, set[str]] = {}
    for module in (ROOT / "src" / "pagedopt").rglob("[a-z]*.py"):
        there.setdefault(module.parent.name, set()).add(module.stem)

    assert set(re.findall(r"`(\w+)`", alone)) == there.pop("pagedopt")
    assert shown == there


@pytest.mark.parametrize("paper", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_every_make_command_in_a_paper_exists(paper: str) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", _read(paper), flags=re.MULTILINE))

    assert named
    assert named <= _targets()


def test_the_pictures_of_the_papers_are_there() -> None:
    for paper in ("README.md", "docs/how-paging-works.md", "docs/watching.md"):
        pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", _read(paper))
        assert pictures
        assert all(((ROOT / paper).parent / picture).is_file() for picture in pictures)


def test_every_result_of_the_bench_has_its_pictures_on_the_page_of_benchmarks() -> None:
    for results in (ROOT / "bench" / "results").glob("*.json"):
        assert f"](pictures/{results.stem}-ratios.svg)" in _read("docs/benchmarks.md"), "make pictures draws them"


def test_the_readme_is_one_screen() -> None:
    assert len(_read("README.md").splitlines()) <= 65


def test_the_readme_says_what_the_package_needs() -> None:
    project = _read("pyproject.toml")
    python = re.search(r'^requires-python = ">=(.*)"$', project, flags=re.MULTILINE)
    torch = re.search(r'"torch>=([^"]*)"', project)
    assert python is not None
    assert torch is not None

    assert f"Python >= {python[1]} " in _read("README.md")
    assert f"torch >= {torch[1]}." in _read("README.md")


def test_everything_that_is_installed_is_pinned_exactly_and_in_one_place() -> None:
    lines = [line for line in _read("requirements/pins.txt").splitlines() if line and not line.startswith("#")]
    pinned = {match["name"] for line in lines if (match := PIN.fullmatch(line))}
    used = {path.name for path in (ROOT / "requirements").glob("*.txt")} - {"pins.txt"}

    assert [line for line in lines if not PIN.fullmatch(line)] == []
    assert used >= {"docs.txt", "build.txt", "run.txt", "demo.txt", "test.txt", "check.txt"}
    for requirements in used:
        text = _read(f"requirements/{requirements}")
        assert _names(requirements) <= pinned
        assert "-c pins.txt" in text or "-r run.txt" in text or "-r demo.txt" in text
        assert set(re.findall(r"^[^;#\n]*==[^;\n]*", text, flags=re.MULTILINE)) <= {"torch==2.13.0"}


def test_what_the_package_depends_on_is_what_is_installed_for_it() -> None:
    declared = re.search(r"^dependencies = \[(.*)\]$", _read("pyproject.toml"), flags=re.MULTILINE)
    assert declared is not None

    assert {re.split("[><=]", name)[0] for name in re.findall(r'"(.*?)"', declared[1])} == _names("run.txt")
