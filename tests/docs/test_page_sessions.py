"""Every block of every page runs, in its order, and prints what the page says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import pagedopt
from pagedopt.cli.command_line import app
from tools.page_session import PAGES, ROOT, Block, PageError, blocks, session

COMMANDS = typer.main.get_command(app).commands
BLOCKS = {page: blocks(page.read_text(encoding="utf-8"), page.name) for page in PAGES}
RUN = [page for page, found in BLOCKS.items() if any(block.language in ("python", "console") for block in found)]


def commands_of(block: Block) -> list[list[str]]:
    """Return the calls of pagedopt in a block of commands."""
    lines = [line.removeprefix("$ ").partition("  #")[0] for line in block.text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("pagedopt ")]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, run_page: Callable[[str], dict[str, Any]]) -> None:
    run_page(str(page.relative_to(ROOT)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_fence_of_a_page_is_read_as_a_block(page: Path) -> None:
    """One that is indented, or has more on its line than is known, would never be run."""
    fences = re.findall(r"^\s*```+\w.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) == len(BLOCKS[page])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_in_a_command_is_one(page: Path) -> None:
    for block in BLOCKS[page]:
        for name, *arguments in commands_of(block) if block.language in ("bash", "console") else ():
            if name == "--install-completion":
                continue
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
            assert {word for word in arguments if word.startswith("-")} <= known, (block.where, name)


def test_a_page_that_is_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(block: str) -> str:
        return session(f"{block}\n```\n", "page.md", {})

    with pytest.raises(AssertionError):
        run("```python\nassert False")
    with pytest.raises(SyntaxError):
        run('```python title="needs a GPU"\nf(a=1, ...)')
    with pytest.raises(PageError, match=r"page.md:2: .*warns"):
        run("```python\nimport warnings; warnings.warn('so')")
    with pytest.raises(PageError, match=r"not in units\.py"):
        run('```python title="units.py"\nx = 1')
    with pytest.raises(PageError, match="exits with 1"):
        run("```console\n$ pagedopt inspect none")
    assert "wrong" not in run("```console\n$ pagedopt memory 7B --markdown\nwrong")


def test_the_readme_makes_the_optimizer_that_it_shows(run_page: Callable[[str], dict[str, Any]]) -> None:
    assert type(run_page("README.md")["optimizer"]) is pagedopt.PagedAdamW8bit
