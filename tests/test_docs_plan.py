"""docs/plan.md: its files are made, its commands are run, and what they print stands below them.

python tests/test_docs_plan.py    writes the outputs anew
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagedopt.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
CONSOLE = re.compile(r"```console\n\$ (?P<command>.*)\n(?P<output>(?:.*\n)*?)```\n")


def make_files(text: str) -> None:
    """Write the files whose content the page shows."""
    for name, content in re.findall(r'```json title="(.*)"\n((?:.*\n)*?)```', text):
        Path(name).write_text(content)


def printed(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(shlex.split(command)[1:])
    return out.getvalue()


def current(text: str) -> str:
    """Return the page with what its commands print now."""
    make_files(text)
    return CONSOLE.sub(lambda match: f"```console\n$ {match['command']}\n{printed(match['command'])}```\n", text)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    return PAGE.read_text(encoding="utf-8")


def test_the_commands_print_what_the_page_says(text: str) -> None:
    assert len(CONSOLE.findall(text)) == 3
    assert current(text) == text, "python tests/test_docs_plan.py writes the page anew"


def test_the_program_runs(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n((?:.*\n)*?)```", text)
    exec(program, {})
    assert "PagedAdamW8bit on cpu, 1 trained tensor" in capsys.readouterr().out


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    os.chdir(tempfile.mkdtemp())
    PAGE.write_text(current(page), encoding="utf-8")
