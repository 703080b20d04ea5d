"""The commands together, and how they end.

Exit codes: 0 all went well; 1 it ran, and a check failed or something broke; 2 the command line makes no sense.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from pagedopt import __version__
from pagedopt.cli.convert import convert
from pagedopt.cli.demo import demo
from pagedopt.cli.doctor import doctor
from pagedopt.cli.inspect import inspect
from pagedopt.cli.memory import memory
from pagedopt.cli.plan import plan
from pagedopt.cli.plot import plot
from pagedopt.errors import CheckpointError, PagedOptError

COMMANDS: tuple[Callable[..., None], ...] = (demo, doctor, plan, memory, inspect, convert, plot)
"""In the order of the help; a function's name is its command's."""

app = typer.Typer(
    help="AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in COMMANDS:
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: those of the process) name, then exit with its code."""
    try:
        app(arguments)
    except (PagedOptError, OSError) as error:  # what breaks is told in one line: a traceback is for our own bugs
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, ValueError) and not isinstance(error, CheckpointError) else 1)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"pagedopt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk."""
