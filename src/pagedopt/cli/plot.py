"""`pagedopt plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagedopt.cli.arguments import need


def plot(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Traces of pagedopt.trace, or bench/results/*.json.")
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the pictures; else beside FILE.")
    ] = None,
) -> None:
    """Draw pictures of a trace or of the bench's results, as PNG and SVG, readable in black and white.

    Of a trace: where each page was, where the bytes were, what the time of steps was spent on. Of results: the times of
    all candidates as ratios. Prints the pictures' names. Exits with 1 if a file cannot be read or is neither.

    Example: pagedopt plot trace.json --out pictures
    """
    need("matplotlib", extra="plot")
    from pagedopt.pictures.plot import plot as draw

    for source in sources:
        try:
            written = draw(source, out=out)
        except ValueError as error:  # a file of something else, or a name that no file can have
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        for path in written:
            typer.echo(path)
