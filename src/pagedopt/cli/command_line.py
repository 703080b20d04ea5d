"""The commands together, and how they end: with a code that says how it went, and with one line where it went wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

EXIT_CODES = (
    "Exit codes: 0 all went well; 1 it ran, and a check failed or something broke; 2 a mistake in the command line."
)

app = typer.Typer(
    help="AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # else the ends of lines in a docstring end lines of the help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
for _command in COMMANDS:
    app.command(epilog=EXIT_CODES)(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: those of the process) name, then exit with its code."""
    try:
        with _plain_warnings():
            app(arguments, prog_name="pagedopt")
    except (PagedOptError, OSError) as error:  # a traceback is for our own bugs
        typer.echo(f"error: {_told(error)}", err=True)
        sys.exit(2 if isinstance(error, ValueError) and not isinstance(error, CheckpointError) else 1)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the place in our code that it comes from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _told(error: Exception) -> str:
    """Return what an error says, without the number that the operating system gives it."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


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
