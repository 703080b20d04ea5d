"""`pagedopt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagedopt.cli.arguments import need, read_with
from pagedopt.units import parse_count

if TYPE_CHECKING:
    import torch


def demo(
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    # The third step is the first that moves the bytes that all later ones do.
    steps: Annotated[int, typer.Option(min=3, help="Steps of each of the three runs.")] = 100,
    budget: Annotated[str, typer.Option(help="Memory for paged state: bytes (4MiB) or a share of the state.")] = "25%",
    params: Annotated[str, typer.Option(help="The least number of parameters of the model.")] = "8M",
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the two pictures.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first weights and of the batches.")] = 0,
) -> None:
    """Train a transformer with torch's AdamW and with paged 8-bit AdamW, and compare.

    The text is Python's own standard library. Prints a table and three checks, and draws two pictures: the loss curves,
    and where the pages of the optimizer's state were. Exits with 1 if a check fails.

    Example: pagedopt demo --steps 50 --budget 10% --out pictures
    """
    need("matplotlib", extra="demo")
    from rich.console import Console

    from pagedopt.demo.paging import parse_budget
    from pagedopt.demo.show import Options, show

    chosen = Options(
        device=read_with(_parse_device, device, "--device"),
        steps=steps,
        budget=read_with(parse_budget, budget, "--budget"),
        num_params=read_with(parse_count, params, "--params"),
        out=out,
        seed=seed,
    )
    if not show(chosen, Console()):
        raise typer.Exit(1)


def _parse_device(text: str) -> torch.device:
    """Return the device of that name; a `ValueError` if there is none such here."""
    import torch

    try:
        device = torch.device(text)
        torch.empty(1, device=device).zero_().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot train on {text!r} here: {reason}") from error
    return device
