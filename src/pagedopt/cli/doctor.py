"""`pagedopt doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagedopt.cli.arguments import progress, show


def doctor(
    spill_dir: Annotated[Path | None, typer.Option(help="Folder that pages would go to.")] = None,
    no_rates: Annotated[bool, typer.Option("--no-rates", help="Measure nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what this machine has of all that pagedopt can use.

    For each thing that is missing, what that costs and how to get it. Measuring rates takes some seconds and writes
    some hundred MB to the spill folder. Exits with 1 if something is broken.

    Example: pagedopt doctor --spill-dir /scratch
    """
    from pagedopt.doctor import Options, diagnose
    from pagedopt.doctor.text import as_json as to_json
    from pagedopt.doctor.text import as_table

    with progress() as say:
        checks = diagnose(Options(spill_dir, with_rates=not no_rates, say=say))
    if as_json:
        typer.echo(to_json(checks))
    else:
        show(as_table(checks))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)
