"""What `pagedopt.plan` says of a step, beside the step: bytes are the same, seconds within a quarter if idle.

Rates and steps are measured by turns, so that a noisy machine hurts both alike; the median of the ratios counts.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import Parameter

from pagedopt import PagedAdamW
from pagedopt.costs.planning import CostPlan, plan
from pagedopt.costs.text import format_seconds
from pagedopt.costs.weights import DTYPES, Weight
from pagedopt.optim.adamw import PagedAdamW8bit, PagedAdamW32bit
from pagedopt.units import format_bytes

TOLERANCE = 0.25
"""Of the seconds, on an idle machine."""

_WARM_UP = 3
_ROUNDS = 3
_STEPS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A step to predict: `share` of the state is resident."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    optimizer: type[PagedAdamW]
    share: float

    @property
    def weights(self) -> list[Weight]:
        return [Weight(str(number), shape, DTYPES[self.dtype]) for number, shape in enumerate(self.shapes)]


_LARGE = ((48_000, 1024),)
_LORA = ((16, 2048), (2048, 16)) * 250

CASES = (
    Case("8 bits, a quarter resident", _LARGE, "float32", PagedAdamW8bit, 0.25),
    Case("8 bits, bfloat16, a quarter resident", _LARGE, "bfloat16", PagedAdamW8bit, 0.25),
    Case("8 bits, three quarters resident", _LARGE, "float32", PagedAdamW8bit, 0.75),
    Case("8 bits, all resident", _LARGE, "float32", PagedAdamW8bit, 1.1),
    Case("32 bits, a quarter resident", _LARGE, "float32", PagedAdamW32bit, 0.25),
    Case("500 matrices of LoRA, all resident", _LORA, "float32", PagedAdamW8bit, 1.1),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case, planned and done.

    Attributes:
        planned: the plan of the last round.
        moved_nbytes: by a step.
        rounds: planned and real seconds of a step, by round.
    """

    planned: CostPlan
    moved_nbytes: int
    rounds: tuple[tuple[float, float], ...]

    @property
    def planned_seconds(self) -> float:
        return statistics.median(planned for planned, _ in self.rounds)

    @property
    def real_seconds(self) -> float:
        return statistics.median(real for _, real in self.rounds)

    @property
    def ratio(self) -> float:
        """Planned seconds over real ones."""
        return statistics.median(planned / real for planned, real in self.rounds)

    @property
    def moves_as_planned(self) -> bool:
        return self.moved_nbytes == self.planned.account.steady_step.moved_nbytes

    @property
    def is_in_time(self) -> bool:
        return abs(self.ratio - 1) <= TOLERANCE


def compare(spill_dir: Path, device: str, *, quick: bool) -> int:
    """Run every case and show it; return 1 if one is not as planned (with `quick`, its seconds do not count)."""
    table = Table("case", "what binds", "moved", "planned", "real", "planned / real", title="steps, and their plans")
    wrong = 0
    for case in CASES:
        found = run(case, spill_dir, torch.device(device), quick=quick)
        wrong += not found.moves_as_planned or not (found.is_in_time or quick)
        assert found.planned.prediction is not None
        table.add_row(
            case.name,
            found.planned.prediction.binds,
            format_bytes(found.moved_nbytes) + ("" if found.moves_as_planned else " WRONG"),
            format_seconds(found.planned_seconds),
            format_seconds(found.real_seconds),
            f"{found.ratio:.2f}" + ("" if found.is_in_time or quick else " WRONG"),
        )
    Console().print(table)
    return int(wrong > 0)


def run(case: Case, spill_dir: Path, device: torch.device, *, quick: bool) -> Outcome:
    """Plan a case and do it, by turns."""
    if quick:
        case = replace(case, shapes=((300, 1024),))
    paging = _paging(case, spill_dir, device, quick=quick)
    params = [Parameter(torch.randn(w.shape, device=device).to(w.dtype)) for w in case.weights]
    for param in params:
        param.grad = torch.randn_like(param)
    rounds = []
    with case.optimizer(params, **paging) as optimizer:
        moved = _moved_by_a_step(optimizer)
        for _ in range(1 if quick else _ROUNDS):
            planned = plan(case.weights, optimizer=case.optimizer, device=device, measure_again=not quick, **paging)
            assert planned.prediction is not None
            steps = [_timed(optimizer, device) for _ in range(1 if quick else _STEPS)]
            rounds.append((planned.prediction.seconds, statistics.median(steps)))
    return Outcome(planned, moved, tuple(rounds))


def _paging(case: Case, spill_dir: Path, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Return what gives the case its share of the state in frames."""
    resident: dict[str, Any] = {"max_gpu_memory": 0, "max_host_memory": 0, "rates": False}
    state = plan(case.weights, optimizer=case.optimizer, device=device, **resident)
    page_size = 64 << 10 if quick else None
    budget = max(round(case.share * state.account.state_nbytes), 5 * (page_size or 1 << 20))
    on_cpu = device.type == "cpu"
    return {
        "max_gpu_memory": None if on_cpu else budget,
        "max_host_memory": budget if on_cpu else 0,
        "page_size": page_size,
        "spill_dir": spill_dir,
    }


def _moved_by_a_step(optimizer: PagedAdamW) -> int:
    for _ in range(_WARM_UP - 1):
        optimizer.step()
    optimizer.reset_paging_stats()
    optimizer.step()
    stats = optimizer.paging_stats()
    return sum(stats.bytes_read.values()) + sum(stats.bytes_written.values())


def _timed(optimizer: PagedAdamW, device: torch.device) -> float:
    begin = time.perf_counter()
    optimizer.step()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begin
