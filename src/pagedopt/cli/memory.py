"""`pagedopt memory`."""

from __future__ import annotations

from typing import Annotated

import typer

from pagedopt.cli.arguments import read_with, show
from pagedopt.units import parse_bytes, parse_count


def memory(
    sizes: Annotated[list[str] | None, typer.Argument(help="Numbers of parameters: 7B, 350M, 8e9, ...")] = None,
    budget: Annotated[str, typer.Option(help="Bytes of state that may stay resident.")] = "1GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Print how many bytes AdamW's state takes, and how many stay resident under a budget.

    Arithmetic only: no tensor is made. The default sizes are those of well-known models.

    Example: pagedopt memory 7B 70B --budget 2GiB
    """
    from pagedopt import memory as table

    if as_json and as_markdown:
        raise typer.BadParameter("give one of them, not both", param_hint="'--json' / '--markdown'")
    budget_nbytes = read_with(parse_bytes, budget, "--budget")
    counts = [read_with(parse_count, size, "SIZES") for size in sizes or table.USUAL_SIZES]
    rows = table.memory_rows(counts, budget_nbytes=budget_nbytes)
    if as_json:
        typer.echo(table.as_json(rows, budget_nbytes=budget_nbytes))
    elif as_markdown:
        typer.echo(table.as_markdown(rows, budget_nbytes=budget_nbytes))
    else:
        show(table.as_table(rows, budget_nbytes=budget_nbytes))
