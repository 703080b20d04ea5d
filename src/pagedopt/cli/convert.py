"""`pagedopt convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder that save wrote, or a file of torch.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder for pagedopt, a file for the others.")],
    to: Annotated[str, typer.Option(help="Who is to load it: torch, bitsandbytes or pagedopt.")],
    bits: Annotated[int | None, typer.Option(help="8 or 32 bits for each moment; as in IN if not given.")] = None,
    min_8bit_size: Annotated[
        int, typer.Option(min=0, help="With --bits 8, values below which state is 32-bit.")
    ] = 4096,
    wrapped: Annotated[bool, typer.Option("--wrapped", help="As bitsandbytes 0.49.2 and later write it.")] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Convert a file of torch.save that is damaged or has no checksums.")
    ] = False,
) -> None:
    """Convert optimizer state between pagedopt, torch, bitsandbytes, torchao and flashoptim (the last two: IN only).

    IN is read twice: its checksums are compared first. OUT is replaced in one step when all of it is written. Nothing
    in IN is run. Exits with 1 if IN is damaged, has no checksums that could tell, or is of no known format.

    Example: pagedopt convert checkpoints/step-1000 optimizer.pt --to bitsandbytes
    """
    from pagedopt.checkpoint.convert import TARGETS
    from pagedopt.checkpoint.convert import convert as run

    if to not in TARGETS:
        raise typer.BadParameter(f"{to!r} is none of {', '.join(TARGETS)}", param_hint="'--to'")
    if bits not in (None, 8, 32):
        raise typer.BadParameter(f"{bits} is neither 8 nor 32", param_hint="'--bits'")
    if (to == "torch" and bits == 8) or (wrapped and to != "bitsandbytes"):
        raise typer.BadParameter("torch's state is 32-bit, and only bitsandbytes' is wrapped", param_hint="'--to'")
    count = run(source, target, to, bits=bits, min_8bit_size=min_8bit_size, wrapped=wrapped, unchecked=unchecked)
    typer.echo(f"wrote the state of {count} parameters to {target}")
