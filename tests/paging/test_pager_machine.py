"""The device pager against a plain dict, in every order of calls that Hypothesis can think of."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated import PAGE_NBYTES, SimulatedTier, check_invariants, simulated_pager
from torch import Tensor

from pagedopt.errors import BudgetError, SpillError
from pagedopt.paging.device import DevicePager
from pagedopt.paging.sweep import sweep

seeds = st.integers(0, 1 << 30)


class PagerMachine(RuleBasedStateMachine):
    tier: SimulatedTier
    pager: DevicePager

    @initialize(depth=st.integers(0, 2), spare=st.integers(0, 3), room=st.one_of(st.none(), st.integers(0, 9)))
    def set_up(self, depth: int, spare: int, room: int | None) -> None:
        self.num_frames = 1 + 2 * depth + spare
        self.room = room
        self.tier = SimulatedTier(room=room)
        self.pager = simulated_pager(self.num_frames, self.tier, depth=depth)
        self.contents: dict[int, bytearray] = {}
        self.used: dict[int, int] = {}
        self.claims: dict[int, int] = {}
        self.pins: dict[int, list[Tensor]] = {}
        self.highest = -1

    def pick(self, seed: int, pages: list[int]) -> int:
        return sorted(pages)[seed % len(pages)]

    def can_add(self) -> bool:
        return len(self.claims) < self.num_frames or self.room is None or len(self.claims) < self.room

    # -- space

    @rule(nbytes=st.integers(1, PAGE_NBYTES))
    def claim(self, nbytes: int) -> None:
        try:
            page, used = self.pager.open_page()
        except SpillError:
            assert self.room is not None
            assert len(self.claims) >= min(self.room, self.num_frames)
            return
        assert used == self.used.get(page, 0)
        if page not in self.claims:
            assert page > self.highest
            self.highest = page
            self.contents[page] = bytearray(PAGE_NBYTES)
            self.claims[page] = 0
        end = min(used + nbytes, PAGE_NBYTES)
        self.pager.claim(page, end)
        self.claims[page] += 1
        self.used[page] = end
        if end == PAGE_NBYTES:
            self.pager.close_page()

    @rule()
    def close_page(self) -> None:
        self.pager.close_page()

    @precondition(lambda self: self.claims)
    @rule(seed=seeds)
    def release(self, seed: int) -> None:
        pages = [page for page in self.claims if page not in self.pins]
        if not pages:
            return
        page = self.pick(seed, pages)
        self.pager.release(page)
        self.claims[page] -= 1
        if not self.claims[page]:
            del self.claims[page], self.contents[page], self.used[page]
            with pytest.raises(KeyError):
                self.pager.pin(page)

    # -- residency

    @precondition(lambda self: self.claims)
    @rule(seed=seeds)
    def pin(self, seed: int) -> None:
        page = self.pick(seed, list(self.claims))
        try:
            frame = self.pager.pin(page)
        except BudgetError:
            assert len(self.pins) >= self.num_frames
            assert page not in self.pins
            return
        self.tier.check_idle(frame)
        assert bytes(frame.tolist()) == self.contents[page]
        self.pins.setdefault(page, []).append(frame)

    @precondition(lambda self: self.claims)
    @rule(seed=seeds, dirty=st.booleans())
    def sweep_over_some(self, seed: int, dirty: bool) -> None:
        if len(self.pins) == self.num_frames:
            return
        rng = random.Random(seed)
        pages = [page for page in self.claims if rng.random() < 0.8]
        for page, frame in sweep(self.pager, pages, dirty=dirty):
            self.tier.check_idle(frame)
            assert bytes(frame.tolist()) == self.contents[page]
            if dirty:
                self.fill(page, frame, rng.randrange(256))
            self.tier.end_some(rng)

    @precondition(lambda self: self.pins)
    @rule(seed=seeds, value=st.integers(0, 255))
    def change_and_unpin(self, seed: int, value: int) -> None:
        page = self.pick(seed, list(self.pins))
        self.fill(page, self.pins[page][-1], value)
        self.unpin(page, dirty=True)

    @precondition(lambda self: self.pins)
    @rule(seed=seeds)
    def look_and_unpin(self, seed: int) -> None:
        self.unpin(self.pick(seed, list(self.pins)), dirty=False)

    def fill(self, page: int, frame: Tensor, value: int) -> None:
        used = self.used[page]
        frame[:used] = value
        self.contents[page][:used] = bytes([value]) * used

    def unpin(self, page: int, *, dirty: bool) -> None:
        self.pager.unpin(page, dirty=dirty)
        self.pins[page].pop()
        if not self.pins[page]:
            del self.pins[page]

    # -- hints, and time

    @rule(page=st.integers(0, 20))
    def prefetch(self, page: int) -> None:
        self.pager.prefetch([page])

    @precondition(lambda self: self.claims)
    @rule(seed=seeds)
    def expect(self, seed: int) -> None:
        pages = list(self.claims)
        random.Random(seed).shuffle(pages)
        self.pager.expect(pages)

    @rule(seed=seeds)
    def a_transfer_ends(self, seed: int) -> None:
        self.tier.end_some(random.Random(seed))

    @rule()
    def flush(self) -> None:
        self.pager.flush()
        assert not self.tier.under_way

    # -- what always holds

    @invariant()
    def the_budget_is_never_exceeded(self) -> None:
        if hasattr(self, "pager"):
            memory = self.pager.memory
            assert memory.frame_nbytes <= self.num_frames * PAGE_NBYTES
            assert memory.num_resident * PAGE_NBYTES <= memory.frame_nbytes

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        if not hasattr(self, "pager"):
            return
        check_invariants(self.pager)

    def teardown(self) -> None:
        if not hasattr(self, "pager"):
            return
        for page in list(self.pins):
            for _ in list(self.pins[page]):
                self.unpin(page, dirty=False)
        for page, content in self.contents.items():
            assert bytes(self.pager.pin(page).tolist()) == content
            self.pager.unpin(page, dirty=False)
        for page, claims in self.claims.items():
            for _ in range(claims):
                self.pager.release(page)
        assert self.pager.memory.disk_nbytes == 0
        assert not self.tier.under_way
        assert not self.tier.reserved


TestPagerMachine = PagerMachine.TestCase
TestPagerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
