"""What commands share: options read from text, mistakes told in one line, packages that only some commands need."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import typer

from pagedopt.errors import PagedOptError

if TYPE_CHECKING:
    from rich.console import RenderableType

Argument = TypeVar("Argument")

_PLAIN_WIDTH = 10_000
"""Columns of a file or pipe, which has no end of the line to break at."""


def read_with(parse: Callable[..., Argument], text: str, option: str) -> Argument:
    """Return what `parse` makes of an option's text; what it refuses ends the command with its message and code 2."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from None


def need(package: str, *, extra: str) -> None:
    """End the command with code 1 if an optional `package` is not installed, and say how it would be."""
    if find_spec(package) is None:
        typer.echo(f'error: this command needs {package}; pip install "pagedopt[{extra}]"', err=True)
        raise typer.Exit(1)


def show(renderable: RenderableType) -> None:
    """Print tables: as wide as the terminal; where there is none, no line is broken or padded."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        console.print(renderable, crop=False)
        return
    if "COLUMNS" not in os.environ:
        console = Console(width=_PLAIN_WIDTH, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(renderable, crop=False)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


@contextmanager
def mistakes() -> Iterator[None]:
    """End the command with code 2 and the message of a `ValueError`: for a block whose arguments are the user's."""
    try:
        yield
    except PagedOptError:  # says itself how the command ends
        raise
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def others_quiet() -> Iterator[None]:
    """Keep the log of other packages off the terminal: for a block that imports them for what they know."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def progress() -> Iterator[Callable[[str], object]]:
    """Yield what shows on stderr what is being done: a line that is taken away again on a terminal, else lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what: typer.echo(f"{what} ...", err=True)
        return
    with console.status("") as status:
        yield status.update
