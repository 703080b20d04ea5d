"""`pagedopt plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagedopt.cli.arguments import mistakes, others_quiet, progress, read_with
from pagedopt.units import parse_count


def plan(
    sizes: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A folder or file with a config.json or safetensors, or a number: 7B."),
    ] = None,
    params: Annotated[str | None, typer.Option(help="Number of parameters, in the place of MODEL: 7B, 7e9.")] = None,
    optimizer: Annotated[str, typer.Option(help="One of the six classes.")] = "PagedAdamW8bit",
    bits: Annotated[int, typer.Option(help="optim_bits of PagedAdamW and AdamW: 8 or 32.")] = 32,
    amsgrad: Annotated[bool, typer.Option("--amsgrad", help="Keep the largest second moment too.")] = False,
    max_gpu_memory: Annotated[str | None, typer.Option(help="Budget on the accelerator: 2GiB; 0: unlimited.")] = None,
    max_host_memory: Annotated[str | None, typer.Option(help="Budget in RAM: 16GiB; 0: unlimited.")] = None,
    page_size: Annotated[str | None, typer.Option(help="Bytes of a page: 4MiB.")] = None,
    prefetch_depth: Annotated[int | None, typer.Option(min=0, help="Pages read ahead, and written behind.")] = None,
    spill_dir: Annotated[Path | None, typer.Option(help="Folder of the spill file, whose disk is measured.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the parameters will be: cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the parameters: float32, bfloat16 or float16.")] = None,
    lora_rank: Annotated[int | None, typer.Option(min=1, help="Train only LoRA's matrices of this rank.")] = None,
    target_modules: Annotated[str, typer.Option(help="Layers that LoRA adapts: q_proj,v_proj, ...")] = "all-linear",
    rates: Annotated[Path | None, typer.Option(help="A file of rates, in the place of this machine's.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine again.")] = False,
    no_rates: Annotated[bool, typer.Option("--no-rates", help="Measure nothing: bytes only, no seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what an optimizer will take, move and need of time, before anything is made.

    Bytes are exact. Seconds follow from this machine's rates, which are measured once, in some seconds, and kept. No
    tensor is made, and no model is loaded.

    Example: pagedopt plan Qwen2.5-7B/config.json --max-gpu-memory 2GiB --max-host-memory 16GiB
    """
    from pagedopt.costs.planning import plan as make_plan

    if (sizes is None) == (params is None):
        raise typer.BadParameter("give one of them", param_hint="'MODEL' / '--params'")
    if sum((rates is not None, measure, no_rates)) > 1:
        raise typer.BadParameter("give one of them at most", param_hint="'--rates' / '--measure' / '--no-rates'")
    with mistakes(), others_quiet(), progress() as say:
        found = make_plan(
            sizes if params is None else read_with(parse_count, params, "--params"),
            optimizer=optimizer,
            optim_bits=bits,
            amsgrad=amsgrad,
            page_size=page_size,
            max_gpu_memory=max_gpu_memory,
            max_host_memory=max_host_memory,
            spill_dir=spill_dir,
            prefetch_depth=prefetch_depth,
            device=device,
            dtype=dtype,
            lora_rank=lora_rank,
            target_modules=[name.strip() for name in target_modules.split(",")],
            rates=False if no_rates else rates,
            measure_again=measure,
            say=lambda what: say(f"measuring {what}"),
        )
    typer.echo(found.to_json() if as_json else str(found))
