"""What is measured on a GPU.

memory, copies                          the ceilings: its own memory, and pinned copies up, down and both at once
resident-float32, resident-bfloat16     one tensor, all state on the GPU: a step of everyone
many-float32, many-bfloat16             500 tensors of 64x64, as a LoRA has them
paged                                   state in pinned host memory but for a share, beside copies both ways
train, train-small                      a transformer of 10^9 bfloat16 parameters: 32768 and 8192 tokens a step
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bench import peers
from bench.accelerator import BOTH, Accelerator, copy_probes
from bench.cases import DTYPES, MANY, Options, memory_contest, resident, resident_contest
from bench.check import check, tolerance_for
from bench.measure import Candidate, Case, Ready, Refusal, compete
from bench.paged import Paged, Sizes
from bench.results_file import Contest
from bench.training import training_contest
from bench.workload import Shape, Workload
from pagedopt.paging.config import AUTOMATIC_PAGE_NBYTES, MIN_PAGE_NBYTES
from pagedopt.units import format_bytes

CASES = (
    "memory",
    "copies",
    "resident-float32",
    "resident-bfloat16",
    "many-float32",
    "many-bfloat16",
    "paged",
    "train",
    "train-small",
)

SHARES = (0.0, 0.25, 0.5, 1.0)
BITSANDBYTES_PAGED = "bitsandbytes paged, cold"

_MAX_NUMEL = 500_000_000
_NBYTES_PER_VALUE = 160
"""Parameters, gradients and state of everyone together, and room for what some need in passing."""

_MANAGED_SHARE = 4
"""Managed memory beyond the card's own can hang it; a quarter of what is free is far from that."""


def contests(options: Options, entrants: Sequence[peers.Entrant], accelerator: Accelerator) -> Iterator[Case[Contest]]:
    """Return every wanted case."""
    device, clock = accelerator.device, accelerator.clock
    many = Shape(5, (64, 64)) if options.quick else MANY

    def one() -> Shape:  # asked for when a case begins: then what the case before it took is free again
        return one_tensor(accelerator, quick=options.quick)

    def compared(name: str, dtype: torch.dtype, shape: Callable[[], Shape]) -> Contest:
        ours_too = () if options.quick else (peers.OURS_8BIT_SMALL_PAGES,)
        return resident_contest(name, shape(), dtype, [*entrants, *ours_too], options, device=device, clock=clock)

    found = [
        Case("memory", lambda: memory_contest(options, device, clock=clock)),
        Case("copies", lambda: copies_contest(options, accelerator)),
    ]
    for kind, shape in (("resident", one), ("many", lambda: many)):
        for dtype in DTYPES:
            name = f"{kind}-{dtype}"
            found.append(Case(name, partial(compared, name, DTYPES[dtype], shape)))
    found.append(Case("paged", lambda: paged_contest(one(), options, accelerator)))
    for name, micro_batches in (("train", 4), ("train-small", 1)):
        found.append(
            Case(name, partial(training_contest, name, micro_batches, options, accelerator, page_nbytes(options)))
        )
    return (case for case in found if options.wants(case.name))


def one_tensor(accelerator: Accelerator, *, quick: bool) -> Shape:
    """Return the largest tensor, up to 500M values, that all candidates can have at the same time."""
    if quick:
        return Shape(1, (700_000,))
    return Shape(1, (min(_MAX_NUMEL, accelerator.free_nbytes() // _NBYTES_PER_VALUE),))


def page_nbytes(options: Options) -> int:
    """Return the bytes of a page: pagedopt's choice for an ample budget, whatever the share."""
    return MIN_PAGE_NBYTES if options.quick else AUTOMATIC_PAGE_NBYTES


def copies_contest(options: Options, accelerator: Accelerator) -> Contest:
    """Measure what the link between host and device can do."""
    nbytes = 1 << 20 if options.quick else 1 << 30
    timings, refusals = compete(
        copy_probes(accelerator, nbytes), effort=options.effort, clock=accelerator.clock, say=options.say
    )
    title = f"copies of {format_bytes(nbytes)} between pinned host memory and the device"
    return Contest("copies", title, 0, BOTH, BOTH, tuple(timings), tuple(refusals), {})


def paged_contest(shape: Shape, options: Options, accelerator: Accelerator) -> Contest:
    """Time paged steps at every share, the resident step, bitsandbytes' paged step, and the copies by themselves."""
    dtype = torch.bfloat16
    device = accelerator.device
    runs = [Paged(Sizes(shape, dtype, device, share, page_nbytes(options)), options.spill_dir) for share in SHARES]
    both = copy_probes(accelerator, runs[0].sizes.minimum_nbytes // 2)[0]
    peer = bitsandbytes_paged(shape, dtype, accelerator)
    refusals = [peer] if isinstance(peer, Refusal) else []
    candidates = [both, resident(peers.OURS_8BIT, shape, dtype, device), *(run.candidate() for run in runs)]
    candidates += [peer] if isinstance(peer, Candidate) else []
    facts: dict[str, float] = {}
    try:
        timings, more = compete(candidates, effort=options.effort, clock=accelerator.clock, say=options.say)
        for run in runs:
            facts.update(run.facts())
    finally:
        for run in runs:
            run.close()
    title = f"{shape}, bfloat16, 8-bit state, so much of it resident"
    return Contest("paged", title, shape.numel, peers.OURS_8BIT.name, BOTH, tuple(timings), (*refusals, *more), facts)


def bitsandbytes_paged(shape: Shape, dtype: torch.dtype, accelerator: Accelerator) -> Candidate | Refusal:
    """Return bitsandbytes' paged step with its state on the host at the start, as ours has it at 0 %, or why not."""
    entrant = peers.BITSANDBYTES_PAGED
    reason = peers.absence(entrant, accelerator.device, quick=False)
    if reason is not None:
        return Refusal(BITSANDBYTES_PAGED, reason)
    state_nbytes = round(entrant.state_nbytes(dtype) * shape.numel)
    free = accelerator.free_nbytes()
    if state_nbytes * _MANAGED_SHARE > free:
        return Refusal(
            BITSANDBYTES_PAGED,
            f"its managed memory of {format_bytes(state_nbytes)} is more than a quarter of the "
            f"{format_bytes(free)} free on the card, beyond which managed memory can hang it",
        )

    def prepare() -> Ready:
        workload = Workload(shape, dtype, accelerator.device)
        optimizer = entrant.make(workload.params)
        verdict = check(optimizer, workload, tolerance_for(is_8bit=True, dtype=dtype))
        managed = [
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor) and getattr(value, "is_paged", False)
        ]
        if not managed:
            raise RuntimeError("bitsandbytes keeps none of its state in managed memory")
        return Ready(optimizer.step, verdict, 2.0 * state_nbytes, before=lambda: _send_to_host(managed, accelerator))

    return Candidate(BITSANDBYTES_PAGED, prepare, entrant.runs(accelerator.device))


def _send_to_host(managed: list[Tensor], accelerator: Accelerator) -> None:
    functional = importlib.import_module("bitsandbytes.functional")  # optional, as all of bitsandbytes is
    for tensor in managed:
        functional.prefetch_tensor(tensor, to_cpu=True)
    accelerator.synchronize()
