"""Run the documents: the blocks of a page are one session, from its top to its end, in a folder of its own.

    python tools/page_session.py    writes anew what the commands in the pages print

| block                             | is                                                                              |
|-----------------------------------|---------------------------------------------------------------------------------|
| ```python                         | run; a line with `# warns` warns, and no other does                             |
| ```python title="needs ..."       | compiled only: it needs a package or a device that not every machine has        |
| ```python title="optim/step.py"   | compiled, and found in that file of the package                                 |
| ```diff                           | run, if the first line that it adds is `import pagedopt`: what it adds           |
| ```json title="rates.json"        | written to the file of that name                                                |
| ```console                        | each `$ pagedopt ...` is run and ends well; what is below it is what it prints   |
| ```console title="..."            | not run: what it prints is of the machine that the title names                  |

A page may use a `model`, and `train(optimizer, steps=3)`, without making them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pagedopt.cli import main as pagedopt_main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pagedopt"
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"])

_BLOCK = re.compile(
    r'^(?P<fence>```)(?P<language>\w+)(?: title="(?P<title>[^"]*)")?\n(?P<text>(?:.*\n)*?)```$', flags=re.MULTILINE
)


class PageError(Exception):
    """A page does not do what it says; the message begins with its name and line."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        page: the file it stands in, as messages name it.
        line: the number of its first line of text.
        language, title: of the fence.
        text: what is between the fences.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(markdown: str, page: str) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    return [_block(markdown, match, page) for match in _BLOCK.finditer(markdown)]


def session(markdown: str, page: str, names: dict[str, Any]) -> str:
    """Run a page in the current folder, and return it with what its commands print now.

    Args:
        markdown: the page.
        page: its name in messages.
        names: what its programs find, and to which they add what they make.

    Raises:
        PageError: a warning that is not told or does not come, a command that ends badly, an excerpt that is not there.
        Exception: whatever a program raises.
    """

    def run(match: re.Match[str]) -> str:
        block = _block(markdown, match, page)
        if block.language == "json" and block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "diff":
            _run_added(block, names)
        elif block.language == "python":
            _run_python(block, names)
        elif block.language == "console" and not block.title:
            return f"```console\n{_run_console(block)}```"
        return match[0]

    return _BLOCK.sub(run, markdown)


def given() -> dict[str, Any]:
    """Return what every page may use."""
    return {"__name__": "__page__", "model": torch.nn.Linear(1024, 512), "train": _train}


def _block(markdown: str, match: re.Match[str], page: str) -> Block:
    line = markdown.count("\n", 0, match.start("text")) + 1
    return Block(page, line, match["language"], match["title"] or "", match["text"])


def _run_python(block: Block, names: dict[str, Any]) -> None:
    # So many empty lines that a traceback shows the line of the page.
    code = compile("\n" * (block.line - 1) + block.text, block.page, "exec", dont_inherit=True)
    if block.title.startswith("needs "):
        return
    if block.title:
        _check_excerpt(block)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exec(code, names)  # noqa: S102 - a page of ours
    if len(said) != block.text.count("# warns"):
        raise PageError(f"{block.where}: `# warns` stands {block.text.count('# warns')} times, warned was {said}")


def _run_added(block: Block, names: dict[str, Any]) -> None:
    added = [line[1:] for line in block.text.splitlines() if line.startswith("+")]
    if added[0] == "import pagedopt":
        _run_python(replace(block, text="\n".join(added)), names)


def _check_excerpt(block: Block) -> None:
    """Compare without indentation: a loop in a method stands at the left of the page."""
    path = PACKAGE / block.title
    lines = "\n".join(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    if "\n".join(line.strip() for line in block.text.splitlines()) not in lines:
        raise PageError(f"{block.where}: this is not in {block.title}")


def _run_console(block: Block) -> str:
    """Return the block with what its commands print, where it shows what they print."""
    shows_output = any(line and not line.startswith("$ ") for line in block.text.splitlines())
    written = ""
    for command in (line for line in block.text.splitlines() if line.startswith("$ ")):
        printed = _printed(command.removeprefix("$ "), block.where)
        written += f"{command}\n{printed if shows_output else ''}"
    return written


def _printed(command: str, where: str) -> str:
    program, *arguments = shlex.split(command)
    if program != "pagedopt":
        raise PageError(f"{where}: {program} is not run here; give the block a title that says where it was")
    out = io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out):
        try:
            pagedopt_main(arguments)
        except SystemExit as ended:
            code = ended.code
    if code:
        raise PageError(f"{where}: {command} exits with {code}")
    return out.getvalue()


def _train(optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step()


if __name__ == "__main__":
    for file in PAGES:
        text = file.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            file.write_text(session(text, file.name, given()), encoding="utf-8")
            os.chdir(ROOT)
