"""Write docs/command-line.md from the commands: what `pagedopt <command> --help` says, as a page.

python tools/command_line_page.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pagedopt.cli.command_line import EXIT_CODES, app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"

HEAD = f"""\
# The command line

`pagedopt --help` lists the commands, `pagedopt <command> --help` says all of this page and a little more. Where the
script is not on the path, `python -m pagedopt` is the same. `python tools/command_line_page.py` writes the page from
the commands.

- {EXIT_CODES} What goes wrong is one line on stderr; a traceback is a bug of ours.
- Sizes are text such as `4MiB` (powers of 1024) or `4MB` (of 1000), numbers of parameters `7B` or `7e9`.
- Where a command's output is data, `--json` prints it for programs: a key that ends in `_nbytes` is a number of bytes.
- Colours are for terminals only, and `NO_COLOR=1` turns them off there too.
- `pagedopt --install-completion` teaches bash, zsh, fish or PowerShell to complete commands and options.
"""


def page() -> str:
    """Return the page as the commands are now."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([HEAD, *(section(name, command) for name, command in commands.items())])


def section(name: str, command: Any) -> str:
    """Return the heading, the help and the parameters of one command."""
    *paragraphs, example = inspect.cleandoc(command.help).split("\n\n")
    text = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    shown = example.removeprefix("Example: ").replace("\n", " ")
    return f"## pagedopt {name}\n\n{text}\n\n```bash\n{shown}\n```\n\n{table(command)}\n"


def table(command: Any) -> str:
    """Return the parameters of a command as a Markdown table."""
    rows = [row for parameter in command.params if parameter.name != "help" for row in lines(parameter)]
    return "\n".join(["| option | default | what it says |", "|---|---|---|", *rows])


def lines(parameter: Any) -> Iterator[str]:
    """Yield the row of one parameter: how it is written, its value if it is not given, and what it says."""
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{option}`" for option in parameter.opts)
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or callable(default):
        shown = ""
    else:
        shown = f"`{default}`"
    yield f"| {name} | {shown} | {(parameter.help or '').replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
