"""`pagedopt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagedopt.cli.arguments import show


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that save wrote, or a file of torch.save.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes and headers only, not every checksum.")] = False,
) -> None:
    """Print what is in a checkpoint, how large it is, how it is kept, and what is damaged.

    Nothing in it is run. Exits with 1 if it is damaged or no checkpoint.

    Example: pagedopt inspect checkpoints/step-1000
    """
    from pagedopt.checkpoint import inspection

    found = inspection.inspect(checkpoint, verify=not quick)
    if as_json:
        typer.echo(inspection.as_json(found))
    else:
        show(inspection.as_tables(found))
    if found.damage:
        raise typer.Exit(1)
