"""Made-up runs: what the report and the pictures are tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pagedopt.demo.outcome import Outcome
from pagedopt.demo.paging import PagingUse
from pagedopt.demo.training import Run
from pagedopt.pictures.residency import END_OF_STEP, Event

MIB = 1 << 20
NUM_STEPS = 20


def _run(name: str, seed: int, shift: float) -> Run:
    losses = [4.0 - 0.1 * step + shift for step in range(NUM_STEPS)]
    checks = {step: losses[step - 1] for step in range(2, NUM_STEPS + 1, 2)}
    return Run(name, seed, losses, checks, [0.2] * NUM_STEPS, [0.05] * NUM_STEPS, state_nbytes=72 * MIB)


@pytest.fixture
def events() -> list[Event]:
    """One step over three pages: page 1 stays, page 0 is read and page 2 written."""
    names = [("read", 0), ("pin", 0), ("unpin", 0), ("hit", 1), ("pin", 1), ("pin", 2), ("write", 2)]
    return [Event(float(i), name, page) for i, (name, page) in enumerate([*names, (END_OF_STEP, -1)])]


@pytest.fixture
def use(events: list[Event]) -> PagingUse:
    """Paging of 16 pages of 1 MiB under a budget of 4, at the least that can be moved."""
    return PagingUse(
        page_nbytes=MIB,
        num_pages=16,
        working_set_nbytes=2 * MIB,
        budget_nbytes=4 * MIB,
        frame_nbytes=4 * MIB,
        host_nbytes=0,
        disk_nbytes=16 * MIB,
        read_nbytes=[0, 15 * MIB] + [14 * MIB] * (NUM_STEPS - 2),
        written_nbytes=[12 * MIB] * NUM_STEPS,
        stalled_seconds=[0.004] * NUM_STEPS,
        events=events,
    )


@pytest.fixture
def outcome(use: PagingUse) -> Outcome:
    """An outcome that passes: the paged curve is 0.01 from the baseline's, another seed's is 0.05."""
    paged = replace(_run("PagedAdamW8bit", 0, 0.01), state_nbytes=15 * MIB)
    return Outcome(_run("AdamW", 0, 0.0), _run("AdamW", 1, -0.05), paged, use)


@pytest.fixture
def paged_shifted(outcome: Outcome) -> Callable[[float], Outcome]:
    """Return what moves the paged curve away from the baseline's."""

    def shifted(shift: float) -> Outcome:
        return replace(outcome, paged=_run("PagedAdamW8bit", 0, shift))

    return shifted
