"""What commands share: options read from text, and packages that only some commands need."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

import typer

Argument = TypeVar("Argument")


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
