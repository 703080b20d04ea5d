"""Every operation of the tier fails in turn, once or from then on: the right error, and never silently wrong state."""

from __future__ import annotations

import random

import pytest
from simulated import Faults, SimulatedTier, check_invariants, open_pages, simulated_pager

from pagedopt.errors import PagedOptError, SpillError, StateLostError
from pagedopt.paging.device import DevicePager
from pagedopt.paging.sweep import sweep

NUM_PAGES = 7
NUM_STEPS = 4


class Run:
    """A small training: pages are opened, swept, flushed, swept by pin alone, and some are released."""

    def __init__(self, faults: Faults, *, depth: int, seed: int, is_synchronous: bool) -> None:
        self.rng = random.Random(seed)
        self.tier = SimulatedTier(faults, is_synchronous=is_synchronous)
        self.pager = simulated_pager(2 + 2 * depth, self.tier, depth=depth)
        self.pages: list[int] = []
        self.values: dict[int, int] = {}

    def train(self) -> None:
        for _ in range(NUM_PAGES):
            self.pages += open_pages(self.pager, 1)
            self.values[self.pages[-1]] = 0
        for _ in range(NUM_STEPS):
            self.step(self.pages)
        self.pager.flush()
        for page in self.rng.sample(self.pages, NUM_PAGES):
            self.step([page])
        self.pager.release(self.pages.pop())
        self.step(self.pages)
        self.pager.flush()

    def step(self, pages: list[int]) -> None:
        for page, frame in sweep(self.pager, pages):
            self.tier.check_idle(frame)
            assert (frame == self.values[page]).all(), "training went on with wrong state"
            frame.add_(1)
            self.values[page] += 1
            self.tier.end_some(self.rng)

    def check_state(self) -> None:
        for page in self.pages:
            assert (self.pager.pin(page) == self.values[page]).all(), "a page was lost silently"
            self.pager.unpin(page, dirty=False)


@pytest.mark.parametrize("lasting", [False, True], ids=["transient", "lasting"])
@pytest.mark.parametrize("is_synchronous", [False, True], ids=["asynchronous", "synchronous"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_whichever_operation_fails_no_page_is_lost_silently(depth: int, is_synchronous: bool, lasting: bool) -> None:
    outcomes: set[str] = set()
    nth = 0
    while True:
        faults = Faults(nth, lasting=lasting)
        run = Run(faults, depth=depth, seed=depth, is_synchronous=is_synchronous)
        outcomes.add(outcome_of(run, faults))
        if not faults.failed:
            break
        nth += 1
    assert nth >= NUM_PAGES + NUM_STEPS
    assert {"completed", "lost", "spill"} <= outcomes


def error_of(run: Run) -> PagedOptError | None:
    try:
        run.train()
    except PagedOptError as error:
        return error
    return None


def outcome_of(run: Run, faults: Faults) -> str:
    error = error_of(run)
    assert error is None or "told to fail" in str(error)
    if isinstance(error, StateLostError):
        outcome = "lost"
        assert "write" in operations(faults)
        reads = run.tier.num_reads
        refuses_everything(run.pager, run.pages)
        assert run.tier.num_reads == reads
    elif error is not None:
        outcome = "spill"
        assert isinstance(error, SpillError)
        assert operations(faults) & {"read", "reserve"}
    else:
        outcome = "completed"
        released = max(run.values)
        assert {page for operation, page in faults.failed if operation != "read"} <= {released}
    faults.nth = None
    check_invariants(run.pager)
    if outcome != "lost" and ("write" not in operations(faults) or outcome == "completed"):
        run.check_state()
    reload(run)
    return outcome


def operations(faults: Faults) -> set[str]:
    return {operation for operation, _ in faults.failed}


def refuses_everything(pager: DevicePager, pages: list[int]) -> None:
    for page in pages:
        pager.prefetch([page])
        with pytest.raises(StateLostError):
            pager.pin(page)
    with pytest.raises(PagedOptError):
        pager.flush()
    check_invariants(pager)


def reload(run: Run) -> None:
    """What an optimizer does with a new state dict: release all, start over."""
    for page in run.pages:
        run.pager.release(page)
    run.pages, run.values = [], {}
    assert run.pager.memory.num_pages == 0 or run.pager._residency.table.open is not None
    assert not run.tier.under_way
    run.train()
    run.check_state()
