"""Paging on an accelerator, simulated: whatever order the events allow, nothing is used too early or overwritten."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulated import check_invariants
from torch import Tensor

from interrupts import Interrupt
from pagedopt.paging.budget import Ledger
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.pager import accelerator_pager
from pagedopt.paging.residency import Residency
from pagedopt.paging.sweep import sweep
from simulated_accelerator import RaceError, SimulatedAccelerator, SimulatedMark

PAGE = 4096
CPU = torch.device("cpu")


class Training:
    """Pages that count how often they were updated, on a simulated accelerator."""

    def __init__(
        self,
        accelerator: SimulatedAccelerator,
        *,
        num_pages: int,
        num_frames: int,
        depth: int = 1,
        host_pages: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.accelerator = accelerator
        frames = max(num_frames, 1 + 2 * depth)
        config = PagingConfig(
            page_size=PAGE,
            max_gpu_memory=frames * PAGE,
            max_host_memory=0 if host_pages is None else host_pages * PAGE,
            spill_dir=folder,
            prefetch_depth=depth,
        )
        self.host = Ledger(config.max_host_memory or None)
        self.pager: DevicePager = accelerator_pager(config, CPU, self.host, accelerator)
        self.pager._residency.frames._allocate = accelerator.allocate
        self.values: dict[int, int] = {}
        for _ in range(num_pages):
            self.open()
        self.mismatches: list[int] = []

    def open(self) -> None:
        page, _ = self.pager.open_page()
        self.pager.claim(page, PAGE)
        self.pager.close_page()
        self.values[page] = 0

    def step(self, pages: Sequence[int] | None = None, *, dirty: bool = True) -> None:
        for page, frame in sweep(self.pager, list(self.values) if pages is None else pages, dirty=dirty):
            self.check(frame, self.values[page])
            if dirty:
                frame.add_(1)
                self.values[page] = (self.values[page] + 1) % 256

    def check(self, frame: Tensor, expected: int) -> None:
        """Look at the frame when its turn comes on the current stream, not now."""

        def look() -> None:
            if not bool((frame == expected).all()):
                self.mismatches.append(expected)

        self.accelerator.enqueue(look, reads=[frame], writes=[])

    def end(self) -> None:
        for page, value in self.values.items():
            assert bool((self.pager.pin(page) == value).all())  # waits, as on a real one
            self.pager.unpin(page, dirty=False)
        self.accelerator.synchronize()
        assert not self.mismatches
        self.pager.close()
        assert self.host.charged == 0


@given(
    num_pages=st.integers(1, 9),
    num_frames=st.integers(1, 9),
    depth=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    eagerness=st.sampled_from((0.0, 0.2, 0.6)),
)
def test_no_page_is_used_before_its_copy_ended_and_none_overwritten_before_its_write_back_ended(
    num_pages: int, num_frames: int, depth: int, seed: int, eagerness: float
) -> None:
    rng = random.Random(seed)
    accelerator = SimulatedAccelerator(seed, eagerness)
    with accelerator:
        training = Training(accelerator, num_pages=num_pages, num_frames=num_frames, depth=depth)
        for _ in range(4):
            with accelerator.on(rng.choice((accelerator.main, accelerator.side))):
                something_else(training, rng)
                training.step(rng.sample(list(training.values), rng.randint(0, num_pages)), dirty=rng.random() < 0.5)
                training.step()
        training.end()


def something_else(training: Training, rng: random.Random) -> None:
    """What may happen between steps."""
    pager = training.pager
    match rng.randrange(5):
        case 0:
            pager.flush()
        case 1:
            with pager._lock:
                pager._residency.trim(rng.randrange(4))
        case 2 if len(training.values) > 1:
            page = rng.choice(list(training.values))
            del training.values[page]
            pager.release(page)
            training.open()
        case 3:
            pager.prefetch([rng.choice(list(training.values))])


@given(num_pages=st.integers(4, 9), depth=st.integers(0, 3), host=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_pages_on_disk_under_an_accelerator_are_as_they_were_left(
    tmp_path_factory: pytest.TempPathFactory, num_pages: int, depth: int, host: int, seed: int
) -> None:
    accelerator = SimulatedAccelerator(seed)
    folder = tmp_path_factory.mktemp("spill")
    with accelerator:
        training = Training(
            accelerator, num_pages=num_pages, num_frames=1, depth=depth, host_pages=2 + host, folder=folder
        )
        for _ in range(3):
            training.step()
            training.step(list(training.values)[::2], dirty=False)
        training.end()


def test_a_step_copies_what_is_not_resident_once_up_and_once_down_and_the_host_waits_for_nothing() -> None:
    accelerator = SimulatedAccelerator()
    with accelerator:
        training = Training(accelerator, num_pages=12, num_frames=7, depth=1)
        for _ in range(3):
            training.step()
        before = accelerator.num_up, accelerator.num_down
        assert accelerator.num_host_waits == 0
        training.step()
        assert accelerator.num_host_waits == 0
        copies = accelerator.num_up - before[0], accelerator.num_down - before[1]
        assert max(copies) <= 12 - 7 + training.pager.working_set
        assert accelerator.num_finishes == 0
        training.end()


def test_everything_resident_makes_no_copy_and_asks_for_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = SimulatedAccelerator()
    config = PagingConfig(page_size=PAGE, max_gpu_memory=0)
    pager = accelerator_pager(config, CPU, Ledger(None), accelerator)

    def refuse(*_: object) -> None:
        raise AssertionError("a stream is asked for")

    for name in ("current", "mark", "hand_over", "copy_up", "copy_down"):
        monkeypatch.setattr(accelerator, name, refuse)
    for _ in range(9):
        page, _ = pager.open_page()
        pager.claim(page, PAGE)
        pager.close_page()
    for _ in range(3):
        pager.begin_step()
        for _ in sweep(pager, range(9)):
            pass
        pager.end_step()
    assert pager.memory.host_nbytes == pager.memory.disk_nbytes == 0


# -- would the simulation notice? -----------------------------------------------------------------------------------


def no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies follow nothing that the caller's stream did with the frame."""
    monkeypatch.setattr(Residency, "_users", lambda self, frame: ())


def no_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame used on one stream is used on another without a word."""

    def touch(residency: Residency, frame: Any) -> None:
        frame.stream = residency._streams.current()

    monkeypatch.setattr(Residency, "touch", touch)


def no_wait_for_copies_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The update does not wait for the copy that brings its page."""
    wait = SimulatedMark.wait
    monkeypatch.setattr(SimulatedMark, "wait", lambda mark: None if mark.stream.name == "up" else wait(mark))


def no_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame is filled while the page before is still being copied out of it."""
    evict = Residency._evict

    def forgetful(residency: Residency, page: Any) -> Any:
        frame = evict(residency, page)
        frame.pending = None
        return frame

    monkeypatch.setattr(Residency, "_evict", forgetful)


@pytest.mark.parametrize("omit", [no_users, no_touch, no_wait_for_copies_up, no_pending])
def test_the_simulation_notices_an_order_that_is_missing(omit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    omit(monkeypatch)
    with SimulatedAccelerator() as accelerator, pytest.raises(RaceError):
        train_on_two_streams(accelerator)


def train_on_two_streams(accelerator: SimulatedAccelerator) -> None:
    training = Training(accelerator, num_pages=9, num_frames=6)
    for step in range(4):
        with accelerator.on((accelerator.main, accelerator.side)[step % 2]):
            training.step()
            training.step(dirty=False)


@pytest.mark.parametrize("host_pages", [None, 8], ids=["RAM", "RAM and disk"])
def test_an_interrupt_anywhere_spoils_no_page_on_an_accelerator(host_pages: int | None, tmp_path: Path) -> None:
    """Copies that were started and that nobody knows of have ended before their frames and pinned pages are used."""
    for nth in range(0, 100_000, 23):
        accelerator = SimulatedAccelerator(nth, 0.2)
        with accelerator:
            training = Training(accelerator, num_pages=7, num_frames=3, host_pages=host_pages, folder=tmp_path)
            training.step()
            with Interrupt(nth, "paging", "tiers") as interrupt:
                training.step(dirty=bool(nth % 2))
                training.pager.flush()
            assert training.pager.memory.num_pages == 7
            check_invariants(training.pager)
            training.step()
            training.end()
        if interrupt.where is None:
            return
