"""What is measured on a CPU.

memory                          what the memory can do
one-float32, one-bfloat16       50M values in one tensor: a step of everyone, beside the memory's own speed
many-float32, many-bfloat16     500 tensors of 64x64, as a LoRA has them: the same
paged                           8-bit state, a quarter in RAM and the rest on disk, beside the disk's own speed
transient                       memory that a step takes and gives back
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench import peers, transient
from bench.check import check, tolerance_for
from bench.disk import Requests, disk_probes, raw_file
from bench.machine import memory_probe, memory_probes
from bench.measure import QUICK, Candidate, Case, Clock, Effort, Ready, Refusal, compete, wall_clock
from bench.paged import Paged, Sizes
from bench.results_file import Contest
from bench.transient import Transient
from bench.workload import Shape, Workload

CPU = torch.device("cpu")
ONE = Shape(1, (50_000_000,))
MANY = Shape(500, (64, 64))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Options:
    """How to run the cases.

    Attributes:
        quick: tiny sizes: everything is done, and the numbers mean nothing.
        only: cases to run; none: all.
        spill_dir: folder on the disk to be measured.
        say: is told what is being done.
    """

    quick: bool
    spill_dir: Path
    only: tuple[str, ...] = ()
    say: Callable[[str], object] = lambda _: None

    @property
    def effort(self) -> Effort:
        return QUICK if self.quick else Effort()

    def wants(self, case: str) -> bool:
        return not self.only or case in self.only


CASES = ("memory", "one-float32", "one-bfloat16", "many-float32", "many-bfloat16", "paged", "transient")


def contests(options: Options, entrants: Sequence[peers.Entrant]) -> Iterator[Case[Contest]]:
    """Return every wanted case that times something."""
    one, many = (Shape(1, (50_000,)), Shape(5, (64, 64))) if options.quick else (ONE, MANY)
    found = [Case("memory", partial(memory_contest, options, CPU))]
    for kind, shape in (("one", one), ("many", many)):
        for dtype in DTYPES:
            name = f"{kind}-{dtype}"
            found.append(Case(name, partial(resident_contest, name, shape, DTYPES[dtype], entrants, options)))
    found.append(Case("paged", partial(paged_contest, Shape(1, (700_000,)) if options.quick else ONE, options)))
    return (case for case in found if options.wants(case.name))


def memory_contest(
    options: Options, device: torch.device, *, clock: Clock = wall_clock, numel: int = 1 << 27
) -> Contest:
    """Measure what the memory of `device` can do: three ways to move bytes with as little arithmetic as there is."""
    numel = numel >> 10 if options.quick else numel
    timings, refusals = compete(memory_probes(device, numel), effort=options.effort, clock=clock, say=options.say)
    title = f"memory of the {device.type}, {numel * 4 >> 20} MiB arrays"
    return Contest("memory", title, 0, "memory sum", "memory sum", tuple(timings), tuple(refusals), {})


def resident_contest(
    case: str,
    shape: Shape,
    dtype: torch.dtype,
    entrants: Sequence[peers.Entrant],
    options: Options,
    *,
    device: torch.device = CPU,
    clock: Clock = wall_clock,
) -> Contest:
    """Time a step of every entrant, each with parameters of its own, all state where the parameters are."""
    candidates = [resident(entrant, shape, dtype, device) for entrant in entrants]
    probe = memory_probe(device, max(shape.numel, 1 << 18))
    timings, refusals = compete([*candidates, probe], effort=options.effort, clock=clock, say=options.say)
    title = f"{shape}, {_name(dtype)} parameters and gradients"
    return Contest(case, title, shape.numel, peers.TORCH_FUSED.name, probe.name, tuple(timings), tuple(refusals), {})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def resident(entrant: peers.Entrant, shape: Shape, dtype: torch.dtype, device: torch.device) -> Candidate:
    """Return an entrant's step as a candidate."""
    tolerance = tolerance_for(is_8bit=entrant.is_8bit, dtype=dtype)
    nbytes = entrant.moved_nbytes(dtype) * shape.numel

    def prepare() -> Ready:
        workload = Workload(shape, dtype, device)
        optimizer = entrant.make(workload.params)
        return Ready(optimizer.step, check(optimizer, workload, tolerance), nbytes)

    return Candidate(entrant.name, prepare, entrant.runs(device))


def paged_contest(shape: Shape, options: Options) -> Contest:
    """Time a step whose 8-bit state is on disk but for a quarter, the resident step, and the disk by itself."""
    dtype = torch.float32
    paged = Paged(Sizes(shape, dtype, CPU, share=0.25), options.spill_dir)
    requests = _requests(paged.sizes)
    with ExitStack() as stack:
        direct = stack.enter_context(raw_file(options.spill_dir, requests, direct=True))
        buffered = stack.enter_context(raw_file(options.spill_dir, requests, direct=False))
        stack.callback(paged.close)
        probes = disk_probes(direct, buffered, requests)
        candidates = [resident(peers.OURS_8BIT, shape, dtype, CPU), paged.candidate(), *probes]
        timings, refusals = compete(candidates, effort=options.effort, say=options.say)
        facts = paged.facts()
    title = f"{shape}, float32, 8-bit state on disk but for a quarter"
    return Contest(
        "paged", title, shape.numel, peers.OURS_8BIT.name, probes[0].name, tuple(timings), tuple(refusals), facts
    )


def _requests(sizes: Sizes) -> Requests:
    """Return the requests that move what the paged step must move, as it moves it."""
    config = sizes.config()
    page_nbytes = config.page_nbytes(sizes.device)
    pages = -(-sizes.minimum_nbytes // (2 * page_nbytes))
    return Requests(pages * page_nbytes, page_nbytes, config.prefetch_depth)


def run_transients(options: Options, entrants: Sequence[peers.Entrant]) -> Iterator[Transient | Refusal]:
    """Measure what a step takes of memory, everyone with float32 parameters."""
    sizes = (20_000, 120_000) if options.quick else (10_000_000, 50_000_000)
    for entrant in (peers.OURS_8BIT,) if options.quick else entrants:
        options.say(f"transient memory of {entrant.name}")
        try:
            yield transient.measure(entrant.name, "float32", sizes)
        except RuntimeError as error:
            yield Refusal(entrant.name, f"transient memory could not be measured: {error}")
