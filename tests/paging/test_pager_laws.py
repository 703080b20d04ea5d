"""The laws of the mechanism, one by one, over a simulated tier."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulated import Faults, SimulatedTier, check_invariants, new_poisoned_buffer, open_pages, simulated_pager

from pagedopt.errors import BudgetError, SpillError, StateLostError
from pagedopt.paging.device import DevicePager
from pagedopt.paging.events import PageEvent
from pagedopt.paging.sweep import sweep


def add_one(pager: DevicePager, pages: list[int], tier: SimulatedTier, expected: int) -> None:
    for _, frame in sweep(pager, pages):
        tier.check_idle(frame)
        assert (frame == expected).all()
        frame.add_(1)


def test_a_page_never_written_is_zero_and_reads_nothing() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    for page in open_pages(pager, 9):
        assert not pager.pin(page).any()
        pager.unpin(page, dirty=False)
    assert tier.num_reads == tier.num_writes == 0


def test_bytes_past_what_is_used_stay_zero_when_a_page_grows_after_it_was_evicted() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    page, used = pager.open_page()
    assert used == 0
    pager.claim(page, 3)
    pager.pin(page)[:3] = 7
    pager.unpin(page, dirty=True)
    pager.close_page()
    others = open_pages(pager, 5)
    for _, frame in sweep(pager, others):
        frame.fill_(0xFF)
    pager.claim(page, 8)
    assert pager.pin(page).tolist() == [7, 7, 7, 0, 0, 0, 0, 0]
    pager.unpin(page, dirty=False)


def test_several_users_share_the_open_page_until_it_is_closed() -> None:
    pager = simulated_pager(3, SimulatedTier())
    first, _ = pager.open_page()
    pager.claim(first, 4)
    assert pager.open_page() == (first, 4)
    pager.claim(first, 6)
    pager.close_page()
    second, used = pager.open_page()
    assert second != first
    assert used == 0
    pager.release(first)
    assert not pager.pin(first).any()
    pager.unpin(first, dirty=False)
    pager.release(first)
    with pytest.raises(KeyError, match=f"page {first} was released"):
        pager.pin(first)


def test_pins_nest_and_one_dirty_unpin_is_enough() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    (page,) = open_pages(pager, 1)
    frame = pager.pin(page)
    assert pager.pin(page).data_ptr() == frame.data_ptr()
    frame.fill_(3)
    pager.unpin(page, dirty=True)
    others = open_pages(pager, 4)
    for _ in sweep(pager, others):
        pass
    assert is_resident(pager, page)
    pager.unpin(page, dirty=False)
    pager.flush()
    assert (tier.stored[page] == 3).all()


def test_everything_resident_opens_no_tier_and_moves_nothing() -> None:
    tier = SimulatedTier(room=0)
    pager = simulated_pager(None, tier)
    pages = open_pages(pager, 20)
    for step in range(3):
        add_one(pager, pages, tier, step)
    pager.flush()
    assert tier.num_reads == tier.num_writes == 0
    assert pager.stats.evictions == 0
    assert pager.memory.num_resident == 20
    assert pager.memory.budget_nbytes is None


def test_pages_that_fit_need_no_tier_even_under_a_budget() -> None:
    tier = SimulatedTier(room=0)
    pager = simulated_pager(3, tier)
    add_one(pager, open_pages(pager, 3), tier, 0)
    with pytest.raises(SpillError, match="full"):
        open_pages(pager, 1)


def test_a_full_tier_shows_when_a_page_is_opened_and_changes_nothing() -> None:
    tier = SimulatedTier(room=5)
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 5)
    before = pager.memory
    with pytest.raises(SpillError, match="full"):
        pager.open_page()
    assert pager.memory == before
    for step in range(3):
        add_one(pager, pages, tier, step)


def test_a_page_refused_while_there_is_a_frame_for_it_gives_the_frame_back() -> None:
    faults = Faults()
    pager = simulated_pager(3, SimulatedTier(faults))
    pages = open_pages(pager, 5)
    for page in pages[:3]:
        pager.release(page)
    faults.nth = faults.num_operations
    with pytest.raises(SpillError, match="told to fail"):
        pager.open_page()
    assert pager._residency.frames.num_charged == 2
    open_pages(pager, 1)
    assert pager._residency.frames.num_charged == 3


def test_memory_that_cannot_be_had_shows_at_a_pin_and_never_at_a_prefetch() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(4, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    pager.flush()
    evicted = [page for page in pages if not is_resident(pager, page)]
    for page in pages:
        if is_resident(pager, page) and len(pages) > 3:
            pager.release(page)
    pager._residency.frames._idle.clear()
    pager._residency.frames._all.clear()

    def exhausted(nbytes: int) -> torch.Tensor:
        raise MemoryError(f"no {nbytes} bytes")

    pager._residency.frames._allocate = exhausted
    pager.prefetch([evicted[0]])
    with pytest.raises(MemoryError, match="no 8 bytes"):
        pager.pin(evicted[0])
    pager._residency.frames._allocate = new_poisoned_buffer
    assert (pager.pin(evicted[0]) == 1).all()


def test_a_page_that_was_offered_stays_though_all_who_had_claimed_it_go() -> None:
    """The garbage collector may end an optimizer between any two lines of another one that shares its page."""
    pager = simulated_pager(3, SimulatedTier())
    page, _ = pager.open_page()
    pager.claim(page, 3)
    assert pager.open_page() == (page, 3)
    pager.release(page)
    pager.claim(page, 6)
    pager.unpin(page, dirty=pager.pin(page).fill_(1) is None)
    pager.release(page)
    assert pager.memory.num_pages == 0
    page, _ = pager.open_page()
    pager.close_page()
    assert pager.memory.num_pages == 0


def test_an_interrupted_wait_loses_track_of_nothing() -> None:
    faults = Faults()
    tier = SimulatedTier(faults)
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    wait = pager._residency._wait

    def interrupted(page: object, transfer: object) -> None:
        raise KeyboardInterrupt

    pager._residency._wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pager.flush()
    assert pager._residency.writing
    pager._residency._wait = wait  # type: ignore[method-assign]
    check_invariants(pager)
    faults.nth = faults.num_operations
    with pytest.raises(StateLostError, match="told to fail"):
        pager.flush()


def test_one_page_sweeps_that_follow_each_other_are_read_ahead_like_one() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(9, tier, depth=2)
    pages = open_pages(pager, 30)
    for step in range(6):  # as hooks step hundreds of optimizers during backward, each with a page of its own
        if step == 3:
            pager.reset_stats()
        for page in reversed(pages):
            add_one(pager, [page], tier, step)
    stats = pager.stats
    assert stats.faults <= 3
    assert stats.bytes_read["disk"] <= 3 * (30 - 9 + pager.working_set) * pager.page_nbytes
    assert stats.bytes_written["disk"] <= 3 * (30 - 9 + pager.working_set) * pager.page_nbytes


def test_the_first_pages_of_the_next_step_are_read_at_the_end_of_this_one() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(5, tier, depth=2)
    pages = open_pages(pager, 20)
    for step in range(3):
        add_one(pager, pages, tier, step)
    assert all(is_resident(pager, page) for page in pages[:2])
    assert any(transfer.kind == "read" for transfer in tier.under_way)


def test_two_models_in_turn_on_one_pager_move_no_more_than_one() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(9, tier, depth=2)
    models = [open_pages(pager, 14), open_pages(pager, 16)]
    for step in range(6):
        if step == 3:
            pager.reset_stats()
        for pages in models:
            add_one(pager, pages, tier, step)
    stats = pager.stats
    assert stats.bytes_read["disk"] <= 3 * (30 - 9 + pager.working_set) * pager.page_nbytes
    assert stats.bytes_written["disk"] <= 3 * (30 - 9 + pager.working_set) * pager.page_nbytes


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("num_pages", [1, 4, 8, 9, 10, 17, 40])
@pytest.mark.parametrize("spare_frames", [0, 1, 3, 8, 20])
def test_bytes_moved_per_step_are_at_most_those_over_budget_and_a_working_set(
    depth: int, num_pages: int, spare_frames: int
) -> None:
    tier = SimulatedTier()
    pager = simulated_pager(1 + 2 * depth + spare_frames, tier, depth=depth)
    pages = open_pages(pager, num_pages)
    bound = max(num_pages - (1 + 2 * depth + spare_frames), 0) + pager.working_set
    if num_pages <= 1 + 2 * depth + spare_frames:
        bound = 0
    for step in range(8):
        tier.num_reads = tier.num_writes = 0
        add_one(pager, pages, tier, step)
        if step > 1:
            assert tier.num_reads <= bound
            assert tier.num_writes <= bound


@pytest.mark.parametrize("depth", [1, 2])
def test_pages_without_gradients_give_their_frames_to_the_live_ones(depth: int) -> None:
    tier = SimulatedTier()
    pager = simulated_pager(10, tier, depth=depth)
    pages = open_pages(pager, 30)
    for step in range(3):
        add_one(pager, pages, tier, step)
    live = pages[:12]
    for step in range(3, 12):
        tier.num_reads = tier.num_writes = 0
        add_one(pager, live, tier, step)
    assert tier.num_reads <= 2 + pager.working_set
    assert tier.num_writes <= 2 + pager.working_set


def test_a_pass_that_changes_nothing_writes_nothing() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(4, tier)
    pages = open_pages(pager, 12)
    add_one(pager, pages, tier, 0)
    pager.flush()
    tier.num_writes = 0
    for _ in range(2):
        for _, frame in sweep(pager, pages, dirty=False):
            assert (frame == 1).all()
    assert tier.num_writes == 0


@given(
    depth=st.integers(0, 3),
    spare=st.integers(0, 6),
    num_pages=st.integers(1, 14),
    seed=st.integers(0, 1 << 30),
    drop=st.booleans(),
)
def test_paging_never_changes_a_bit(depth: int, spare: int, num_pages: int, seed: int, drop: bool) -> None:
    rng = random.Random(seed)
    tier = SimulatedTier()
    pager = simulated_pager(1 + 2 * depth + spare, tier, depth=depth)
    if drop:
        pager._residency.read_ahead = lambda pages: None  # type: ignore[method-assign]
    pages = open_pages(pager, num_pages)
    values = dict.fromkeys(pages, 0)
    for _ in range(6):
        live = [page for page in pages if rng.random() < 0.8]
        for page, frame in sweep(pager, live):
            tier.check_idle(frame)
            assert (frame == values[page]).all()
            values[page] = rng.randrange(256)
            frame.fill_(values[page])
            for _ in range(rng.randrange(4)):
                tier.end_some(rng)
    for page, frame in sweep(pager, pages, dirty=False):
        assert (frame == values[page]).all()
    assert pager.memory.frame_nbytes <= (1 + 2 * depth + spare) * pager.page_nbytes


def test_dropping_every_prefetch_changes_only_time() -> None:
    moved = []
    for drop in (False, True):
        tier = SimulatedTier()
        pager = simulated_pager(5, tier, depth=2)
        if drop:
            pager._residency.read_ahead = lambda pages: None  # type: ignore[method-assign]
        pages = open_pages(pager, 12)
        for step in range(4):
            add_one(pager, pages, tier, step)
        pager.flush()
        moved.append([tier.stored[page].tolist() for page in pages])
        assert (pager.stats.prefetches == 0) == drop
    assert moved[0] == moved[1]


def test_a_prefetch_that_fails_makes_no_pin_fail() -> None:
    faults = Faults()
    tier = SimulatedTier(faults)
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    pager.flush()
    evicted = next(page for page in pages if not is_resident(pager, page))
    pager.release(next(page for page in pages if is_resident(pager, page)))  # so that there is a frame to read into
    faults.nth = faults.num_operations
    pager.prefetch([evicted])
    assert is_resident(pager, evicted)
    assert (pager.pin(evicted) == 1).all()
    assert faults.failed == [("read", evicted)]


def is_resident(pager: DevicePager, page: int) -> bool:
    return pager._residency.table[page].frame is not None


def test_prefetch_takes_any_page_and_never_raises() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 3)
    frames = [pager.pin(page) for page in pages]
    pager.prefetch([pages[0]])
    pager.prefetch([99])
    assert len(frames) == 3


def test_a_failed_read_raises_at_its_pin_and_loses_nothing() -> None:
    faults = Faults()
    tier = SimulatedTier(faults)
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    pager.flush()
    evicted = next(page for page in pages if not is_resident(pager, page))
    faults.nth = faults.num_operations
    with pytest.raises(SpillError, match="told to fail"):
        pager.pin(evicted)
    assert not is_resident(pager, evicted)
    add_one(pager, pages, tier, 1)


def test_after_a_lost_write_back_nothing_is_pinned_until_state_is_reloaded() -> None:
    faults = Faults()
    tier = SimulatedTier(faults)
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    faults.nth = faults.num_operations
    with pytest.raises(StateLostError, match="told to fail"):
        add_one(pager, pages, tier, 1)
    for page in pages:
        with pytest.raises(StateLostError, match="load a state dict or checkpoint"):
            pager.pin(page)
    with pytest.raises(StateLostError):
        pager.flush()
    for page in pages:
        pager.release(page)
    fresh = open_pages(pager, 6)
    for step in range(3):
        add_one(pager, fresh, tier, step)


def test_a_half_updated_page_is_lost_until_it_is_released() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 5)
    pager.pin(pages[0])
    pager.fail(pages[0], RuntimeError("the kernel stopped halfway"))
    pager.unpin(pages[0], dirty=True)
    with pytest.raises(StateLostError, match="the kernel stopped halfway") as caught:
        pager.pin(pages[1])
    assert isinstance(caught.value.__cause__, RuntimeError)
    pager.release(pages[0])
    assert not pager.pin(pages[1]).any()


def test_all_frames_pinned_by_one_thread_is_an_error_that_says_what_to_do() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 4)
    for page in pages[:3]:
        pager.pin(page)
    with pytest.raises(BudgetError, match="all 3 frames are pinned; raise max_host_memory"):
        pager.pin(pages[3])
    pager.unpin(pages[1], dirty=True)
    assert not pager.pin(pages[3]).any()


def test_waiting_for_a_frame_that_another_thread_has_pinned_is_a_stall() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 4)
    events: list[PageEvent] = []
    pager.observe(events.append)
    for page in pages[:3]:
        pager.pin(page)
    before = pager.stats
    waiting = threading.Thread(target=pager.pin, args=(pages[3],), name="the other")
    waiting.start()
    while pager.stats.faults == before.faults:  # until it is at the pin, and then waits
        time.sleep(0.001)
    time.sleep(0.05)
    pager.unpin(pages[1], dirty=True)
    waiting.join()
    stalled = pager.stats - before
    waits = [(event.page, event.span) for event in events if event.name == "wait" and event.span is not None]
    (page, span), *_ = waits  # for the frame; what may follow is for the write that left it
    assert page == pages[3]
    assert span.track == "the other"
    assert 0.05 <= span.stop - span.start < 5
    assert stalled.stalls == len(waits)
    assert stalled.stalled_seconds == pytest.approx(sum(span.stop - span.start for _, span in waits))


def test_a_budget_smaller_than_the_working_set_says_the_smallest_that_works() -> None:
    pager = simulated_pager(4, SimulatedTier(), depth=2)
    open_pages(pager, 4)
    with pytest.raises(BudgetError, match="max_host_memory to at least 40 bytes"):
        pager.open_page()
    assert pager.memory.num_pages == 4


def test_a_sweep_left_with_an_exception_unpins_its_page() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 5)

    def stop_halfway() -> None:
        for _, frame in sweep(pager, pages):
            frame.fill_(9)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_halfway()
    for page in pages[2:]:
        pager.pin(page)
    for page in pages[2:]:
        pager.unpin(page, dirty=False)
    assert (pager.pin(pages[0]) == 9).all()


def test_the_main_thread_waits_for_no_write_while_another_frame_can_be_had() -> None:
    rng = random.Random(0)
    tier = SimulatedTier()
    pager = simulated_pager(7, tier, depth=2)
    pages = open_pages(pager, 20)
    waits: list[str] = []

    def count(page: object, transfer: object) -> None:
        if transfer is not None and not transfer.done():  # type: ignore[attr-defined]
            waits.append(transfer.kind)  # type: ignore[attr-defined]
        if transfer is not None:
            transfer.wait()  # type: ignore[attr-defined]

    for step in range(5):
        if step == 2:  # the first passes write pages that were never read: those have nothing to hide behind
            pager._residency._wait = count  # type: ignore[method-assign]
        for _, frame in sweep(pager, pages):
            frame.add_(1)
            while rng.random() < 0.5:
                tier.end_some(rng)
    assert "write" not in waits
    assert "read" in waits


def test_what_happens_to_pages_is_told_in_order() -> None:
    tier = SimulatedTier(is_synchronous=True)
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 4)
    add_one(pager, pages, tier, 0)
    told: list[PageEvent] = []
    pager.observe(told.append)
    add_one(pager, pages, tier, 1)
    pager.unobserve(told.append)
    events = [(event.name, event.page) for event in told]
    assert [page for _, page in events[:4]] == pages
    assert sorted(name for name, _ in events[:4]) == ["away", "resident", "resident", "resident"]
    assert {event.home for event in told} == {"disk"}
    add_one(pager, pages, tier, 2)
    assert len(events) == len(told)
    assert [page for event, page in events if event == "pin"] == pages
    assert [page for event, page in events if event == "unpin"] == pages
    stats = pager.stats
    assert stats.faults + stats.hits == 12
    assert sum(event in ("hit", "fault") for event, _ in events) == 4
    reads = [page for event, page in events if event == "read"]
    assert set(reads) <= set(pages)
    filled = [page for event, page in events if event == "filled"]
    assert filled
    assert filled == reads[: len(filled)], "the last may still be under way"


def test_flush_leaves_pinned_pages_alone() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 5)
    for _ in range(2):  # dirty, and in use again
        pager.pin(pages[0])[:] = 4
        pager.unpin(pages[0], dirty=True)
    pager.pin(pages[0])
    pager.flush()
    assert pages[0] not in tier.stored
    pager.unpin(pages[0], dirty=False)
    pager.flush()
    assert (tier.stored[pages[0]] == 4).all()


def test_stats_count_bytes_by_tier_and_reset() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    add_one(pager, open_pages(pager, 6), tier, 0)
    stats = pager.stats
    assert stats.bytes_written == {"host": 0, "disk": tier.num_writes * pager.page_nbytes}
    assert stats.bytes_read == {"host": 0, "disk": tier.num_reads * pager.page_nbytes}
    assert (stats + stats).faults == 2 * stats.faults == 12
    pager.reset_stats()
    assert pager.stats.faults == 0
    assert pager.stats.bytes_written == {"host": 0, "disk": 0}


def test_the_last_release_frees_frames_and_tier_at_once() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    for page in pages[:-1]:
        pager.release(page)
    assert not tier.is_closed
    assert pager.memory.frame_nbytes <= pager.page_nbytes
    pager.release(pages[-1])
    assert tier.is_closed
    assert pager.memory.num_pages == pager.memory.frame_nbytes == pager.memory.disk_nbytes == 0


def test_a_page_released_while_pinned_goes_with_its_last_pin() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 5)
    frame = pager.pin(pages[0])
    pager.release(pages[0])
    frame.fill_(1)
    pager.unpin(pages[0], dirty=True)
    assert pager.memory.num_pages == 4
    with pytest.raises(KeyError):
        pager.pin(pages[0])


def test_a_release_in_the_middle_of_a_turn_is_done_when_the_turn_ends() -> None:
    pager = simulated_pager(3, SimulatedTier())
    pages = open_pages(pager, 5)
    pager.observe(lambda event: pager.release(pages[1]) if event.name == "pin" else None)
    pager.pin(pages[0])
    assert pager.memory.num_pages == 4


def test_a_closed_pager_says_so() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    pager.close()
    pager.close()
    assert tier.is_closed
    assert pager.memory.num_pages == 0
    with pytest.raises(StateLostError, match="this pager is closed"):
        pager.pin(pages[0])
    with pytest.raises(StateLostError, match="this pager is closed"):
        next(sweep(pager, pages))
    for page in pages:
        pager.release(page)
    with pytest.raises(RuntimeError, match="this pager is closed"):
        pager.open_page()


def test_flush_writes_dirty_pages_once() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(4, tier)
    pages = open_pages(pager, 6)
    add_one(pager, pages, tier, 0)
    pager.flush()
    assert all(torch.equal(tier.stored[page], torch.ones(8, dtype=torch.uint8)) for page in pages)
    assert not tier.under_way
    before = tier.num_writes
    pager.flush()
    assert tier.num_writes == before
