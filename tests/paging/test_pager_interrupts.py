"""Ctrl-C in the middle of whatever the pager is at: no byte is lost or wrong, and all of the budget is still there."""

from __future__ import annotations

import random

import pytest
from simulated import PAGE_NBYTES, SimulatedTier, check_invariants, open_pages, simulated_pager
from torch import Tensor

from interrupts import Interrupt
from pagedopt.paging.sweep import sweep

NUM_PAGES = 8


class Run:
    """Pages that are stepped, read, flushed and released, and what they must hold."""

    def __init__(self, depth: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tier = SimulatedTier()
        self.num_frames = 1 + 2 * depth + self.rng.randrange(2)
        self.pager = simulated_pager(self.num_frames, self.tier, depth=depth)
        self.values = dict.fromkeys(open_pages(self.pager, NUM_PAGES), 0)
        self.step()

    def step(self) -> None:
        for page, frame in sweep(self.pager, list(self.values)):
            self.check(page, frame)
            frame.add_(1)
            self.values[page] += 1
            self.tier.end_some(self.rng)

    def read(self) -> None:
        for page, frame in sweep(self.pager, list(self.values), dirty=False):
            self.check(page, frame)

    def check(self, page: int, frame: Tensor) -> None:
        self.tier.check_idle(frame)
        assert (frame == self.values[page]).all()

    def train(self) -> None:
        self.read()
        self.step()
        self.pager.prefetch([next(iter(self.values))])
        self.pager.flush()
        self.step()

    def check_all(self) -> None:
        """What follows a turn that was cut short finds everything as it was."""
        memory = self.pager.memory
        assert memory.num_pages == len(self.values)
        check_invariants(self.pager)
        assert not self.pager._pins_of_thread
        assert memory.frame_nbytes <= self.num_frames * PAGE_NBYTES
        assert self.pager._residency.frames.num_charged == self.num_frames
        self.read()
        self.step()

    def end(self) -> None:
        for page in self.values:
            self.pager.release(page)
        assert self.pager.memory.num_pages == 0
        assert not self.tier.reserved
        assert not self.tier.under_way
        assert self.pager._residency.frames.num_charged == 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_interrupt_anywhere_spoils_no_page(depth: int) -> None:
    """At every eleventh function that begins, from another one on for each depth."""
    seen: set[str] = set()
    for nth in range(depth, 100_000, 11):
        run = Run(depth, seed=nth)
        with Interrupt(nth, "paging") as interrupt:
            run.train()
        run.check_all()
        run.end()
        if interrupt.where is None:
            break
        seen.add(interrupt.where)
    assert len(seen) >= 20, f"only {sorted(seen)} were interrupted"
