"""The command line: each command a short function that reads its arguments and calls the module that does the work.

Exit codes: 0 all went well; 1 it ran, and a check failed or something broke; 2 the command line makes no sense.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pagedopt import __version__
from pagedopt.errors import CheckpointError, PagedOptError
from pagedopt.units import parse_bytes, parse_count

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    help="AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: those of the process) name, then exit with its code."""
    try:
        app(arguments)
    except PagedOptError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, ValueError) and not isinstance(error, CheckpointError) else 1)


Argument = TypeVar("Argument")


def _read_with(parse: Callable[..., Argument], text: str, option: str) -> Argument:
    """Return what `parse` makes of an option's text; what it refuses ends the command with its message and code 2."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from None


def _need(package: str, *, extra: str) -> None:
    """End the command with code 1 if an optional `package` is not installed, and say how it would be."""
    if find_spec(package) is None:
        typer.echo(f'error: this command needs {package}; pip install "pagedopt[{extra}]"', err=True)
        raise typer.Exit(1)


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


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
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
    _need("matplotlib", extra="demo")
    from rich.console import Console

    from pagedopt.demo.paging import parse_budget
    from pagedopt.demo.show import Options, show

    chosen = Options(
        device=_read_with(_parse_device, device, "--device"),
        steps=steps,
        budget=_read_with(parse_budget, budget, "--budget"),
        num_params=_read_with(parse_count, params, "--params"),
        out=out,
        seed=seed,
    )
    if not show(chosen, Console()):
        raise typer.Exit(1)


@app.command()
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
    from rich.console import Console

    from pagedopt import memory as table

    if as_json and as_markdown:
        raise typer.BadParameter("give one of them, not both", param_hint="'--json' / '--markdown'")
    budget_nbytes = _read_with(parse_bytes, budget, "--budget")
    counts = [_read_with(parse_count, size, "SIZES") for size in sizes or table.USUAL_SIZES]
    rows = table.memory_rows(counts, budget_nbytes=budget_nbytes)
    if as_json:
        typer.echo(table.as_json(rows, budget_nbytes=budget_nbytes))
    elif as_markdown:
        typer.echo(table.as_markdown(rows, budget_nbytes=budget_nbytes))
    else:
        Console().print(table.as_table(rows, budget_nbytes=budget_nbytes))


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that save wrote, or a file of torch.save.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes and headers only, not every checksum.")] = False,
) -> None:
    """Print what is in a checkpoint, how large it is, how it is kept, and what is damaged.

    Nothing in it is run. Exits with 1 if it is damaged or no checkpoint.

    Example: pagedopt inspect checkpoints/step-1000
    """
    from rich.console import Console

    from pagedopt.checkpoint import inspection

    found = inspection.inspect(checkpoint, verify=not quick)
    if as_json:
        typer.echo(inspection.as_json(found))
    else:
        Console(soft_wrap=True, highlight=False, markup=False).print(inspection.as_tables(found))
    if found.damage:
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder that save wrote, or a file of torch.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder for pagedopt, a file for the others.")],
    to: Annotated[str, typer.Option(help="Who is to load it: torch, bitsandbytes or pagedopt.")],
    bits: Annotated[int | None, typer.Option(help="8 or 32 bits for each moment; as in IN if not given.")] = None,
    min_8bit_size: Annotated[
        int, typer.Option(min=0, help="With --bits 8, values below which state is 32-bit.")
    ] = 4096,
    wrapped: Annotated[bool, typer.Option("--wrapped", help="As bitsandbytes 0.49.2 and later write it.")] = False,
) -> None:
    """Convert optimizer state between pagedopt, torch, bitsandbytes, torchao and flashoptim (the last two: IN only).

    OUT is replaced in one step when all of it is written. Nothing in IN is run. Exits with 1 if IN is damaged or of no
    known format.

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
    count = run(source, target, to, bits=bits, min_8bit_size=min_8bit_size, wrapped=wrapped)
    typer.echo(f"wrote the state of {count} parameters to {target}")


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
