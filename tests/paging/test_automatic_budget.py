"""The automatic budget: its policy over made-up memory traces, and the frames that follow it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedopt.errors import SpillError
from pagedopt.paging import automatic
from pagedopt.paging.automatic import AutomaticBudget, Policy, Reading
from pagedopt.paging.budget import Ledger
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.pager import accelerator_pager
from pagedopt.paging.sweep import sweep
from simulated_accelerator import SimulatedAccelerator

GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Card:
    """A card's memory: what others hold comes and goes, and the peak counts everything at once."""

    capacity: int
    state: int
    working_set: int = 40 * MIB
    policy: Policy = field(default_factory=Policy)
    frames: int = 0
    peak: int = 0
    keep: int = 0

    def allocate(self, others: int) -> bool:
        """Return whether it fits."""
        if others + self.frames > self.capacity:
            return False
        self.peak = max(self.peak, others + self.frames)
        return True

    def step(self, others: int) -> None:
        self.keep = self.policy.keep(Reading(self.capacity, self.peak), self.frames)
        self.frames = min(self.state, max(self.keep, self.working_set))
        assert self.allocate(others)
        self.frames = min(self.state, self.keep, self.frames)


spikes = st.lists(st.tuples(st.integers(1, 79), st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=12)


@given(state=st.integers(0, 100), trace=spikes)
def test_a_spike_that_was_seen_once_fits_from_then_on(state: int, trace: list[tuple[int, float, bool]]) -> None:
    card = Card(80 * GIB, state * GIB)
    seen = 0
    for spike_gib, share, resets in trace:
        spike = spike_gib * GIB - 500 * MIB
        if resets:  # as trainers do that report a peak for each step
            card.peak = card.frames
        if not card.allocate(spike):
            assert spike > seen
            return
        seen = max(seen, spike)
        card.step(others=min(round(spike * share), card.capacity - card.working_set))


@given(state=st.integers(0, 100), spike_gib=st.integers(1, 70), share=st.floats(0.0, 1.0), steps=st.integers(2, 9))
def test_state_stays_where_it_is_while_nothing_else_needs_the_memory(
    state: int, spike_gib: int, share: float, steps: int
) -> None:
    card = Card(80 * GIB, state * GIB)
    spike = spike_gib * GIB
    for _ in range(steps):
        assert card.allocate(spike)
        card.step(others=round(spike * share))
    assert card.frames == min(card.state, 75 * GIB - spike)


def test_frames_fall_to_none_when_activations_need_all_the_room_and_the_peak_is_never_reset() -> None:
    card = Card(80 * GIB, 30 * GIB)
    for others in (20, 20, 40, 40):
        assert card.allocate(others * GIB)
        card.step(others=10 * GIB)
    assert card.frames == 30 * GIB
    for _ in range(4):
        assert card.allocate(50 * GIB)
        card.step(others=10 * GIB)
        assert card.frames == 25 * GIB
    card.frames = 0  # the user freed everything, and a larger batch came
    for _ in range(4):
        assert card.allocate(79 * GIB)
        card.step(others=10 * GIB)
        assert card.frames == 0


def test_frames_do_not_shrink_from_step_to_step_when_nothing_changes() -> None:
    card = Card(80 * GIB, 60 * GIB)
    assert card.allocate(18 * GIB)
    card.step(others=10 * GIB)
    assert card.frames == 57 * GIB
    assert card.allocate(23 * GIB)  # into the reserve, to the last byte
    kept = []
    for _ in range(5):
        card.step(others=10 * GIB)
        kept.append(card.frames)
        assert card.allocate(23 * GIB)
    assert kept == [52 * GIB] * 5


# -- with pages -------------------------------------------------------------------------------------------------------

PAGE = 4096
CPU = torch.device("cpu")


@dataclass
class Allocator:
    """What the pager is told: `others` besides its own frames, with a peak that counts both."""

    pager: DevicePager | None = None
    capacity: int = 64 * PAGE
    peak: int = 0

    def spike(self, others: int) -> None:
        frames = 0 if self.pager is None else self.pager.memory.frame_nbytes
        assert others + frames <= self.capacity, "out of memory"
        self.peak = max(self.peak, others + frames)

    def __call__(self) -> Reading:
        return Reading(self.capacity, self.peak)


@pytest.fixture
def _no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "RESERVE_SHARE", 0)
    monkeypatch.setattr(automatic, "RESERVE_NBYTES", 0)


@pytest.mark.usefixtures("_no_reserve")
def test_frames_follow_the_peaks_and_no_bit_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "RESERVE_NBYTES", 16 * PAGE)
    accelerator, allocator = SimulatedAccelerator(), Allocator(capacity=100 * PAGE)
    with accelerator:
        pager = automatic_pager(accelerator, allocator)
        allocator.spike(40 * PAGE)
        pages = [open_page(pager) for _ in range(20)]
        kept = []
        for number, others in enumerate((40, 64, 70, 78, 90, 30, 30, 96)):
            allocator.spike(others * PAGE)
            step(pager, pages, number)
            kept.append(pager.memory.frame_nbytes // PAGE)
        assert kept == [20, 20, 14, 6, 0, 0, 0, 0]
        for page in pages:
            assert bool((pager.pin(page) == 8).all())
            pager.unpin(page, dirty=False)
        pager.close()


@pytest.mark.usefixtures("_no_reserve")
def test_frames_come_back_when_the_device_has_more_room() -> None:
    accelerator, allocator = SimulatedAccelerator(), Allocator()
    with accelerator:
        pager = automatic_pager(accelerator, allocator)
        allocator.spike(60 * PAGE)
        pages = [open_page(pager) for _ in range(20)]
        step(pager, pages, 0)
        assert pager.memory.frame_nbytes == 4 * PAGE
        allocator.capacity = 100 * PAGE  # another process ended
        step(pager, pages, 1)
        assert pager.memory.num_resident == 20
        step(pager, pages, 2)
        copies = accelerator.num_up, accelerator.num_down
        step(pager, pages, 3)
        assert (accelerator.num_up, accelerator.num_down) == copies
        pager.close()


@pytest.mark.usefixtures("_no_reserve")
def test_state_that_cannot_leave_stays_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, allocator = SimulatedAccelerator(), Allocator()
    with accelerator:
        pager = automatic_pager(accelerator, allocator)
        allocator.spike(10 * PAGE)
        pages = [open_page(pager) for _ in range(20)]
        step(pager, pages, 0)
        allocator.spike(44 * PAGE)
        allocator.peak = 60 * PAGE + 20 * PAGE

        def full() -> None:
            raise SpillError("there is no room")

        monkeypatch.setattr(pager._residency, "_open_tier", full)
        with pytest.warns(UserWarning, match="state stays on the device, .*: there is no room"):
            step(pager, pages, 1)
        assert pager.memory.num_resident == 20


def automatic_pager(accelerator: SimulatedAccelerator, allocator: Allocator) -> DevicePager:
    config = PagingConfig(page_size=PAGE, max_host_memory=0, prefetch_depth=1)
    pager = accelerator_pager(config, CPU, Ledger(None), accelerator, read=allocator)
    pager._residency.frames._allocate = accelerator.allocate
    allocator.pager = pager
    return pager


def open_page(pager: DevicePager) -> int:
    page, _ = pager.open_page()
    pager.claim(page, PAGE)
    pager.close_page()
    return page


def step(pager: DevicePager, pages: list[int], expected: int) -> None:
    pager.begin_step()
    for _, frame in sweep(pager, pages):
        assert bool((frame == expected).all())
        frame.add_(1)
    pager.end_step()


def test_an_automatic_budget_never_has_less_than_the_working_set_while_a_step_runs() -> None:
    budget = AutomaticBudget(lambda: Reading(GIB, GIB), working_set_nbytes=40 * MIB)
    budget.begin_step(0)
    assert budget.keep_nbytes == 0
    assert budget.ledger.known_limit == 40 * MIB


def test_steps_of_single_parameters_look_at_the_allocator_now_and_then_and_miss_no_spike(monkeypatch):
    """`step_in_backward` begins hundreds of them in a backward pass."""
    now, readings = [100.0], []
    monkeypatch.setattr(automatic.time, "monotonic", lambda: now[0])
    card = {"peak": 10 * GIB}

    def read() -> Reading:
        readings.append(now[0])
        return Reading(80 * GIB, card["peak"])

    budget = AutomaticBudget(read, 40 * MIB)
    for step in range(100):
        now[0] += 0.001
        if step == 50:
            card["peak"] = 70 * GIB
        budget.begin_step(0, is_part=True)
        budget.end_step(0)
    assert len(readings) == 5
    assert budget.keep_nbytes == 5 * GIB
    for _ in range(3):
        budget.begin_step(0)
    assert len(readings) == 8, "a whole step always looks"
