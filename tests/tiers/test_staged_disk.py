"""Pages of an accelerator on disk: stages that overlap, rings that are charged, failures that reach their waiter."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pagedopt.errors import SpillError
from pagedopt.paging.budget import Ledger
from pagedopt.tiers import staged
from pagedopt.tiers.slabs import Slabs
from pagedopt.tiers.staged import StagedDiskTier
from pagedopt.tiers.streams import InOrder
from simulated_accelerator import SimulatedAccelerator

PAGE = 4096


def tier_in(folder: Path, streams: Any, *, ring_pages: int = 2, ledger: Ledger | None = None) -> StagedDiskTier:
    ledger = ledger or Ledger(None)
    slabs = Slabs(PAGE, ledger.charge, ledger.refund)
    return StagedDiskTier(PAGE, folder, slabs=slabs, streams=streams, ring_pages=ring_pages)


def page_of(value: int) -> torch.Tensor:
    return torch.full((PAGE,), value, dtype=torch.uint8)


def test_finishing_puts_back_into_the_rings_what_was_taken_out(tmp_path: Path) -> None:
    """As after an interrupt between taking a pinned page and using it."""
    tier = tier_in(tmp_path, InOrder(), ring_pages=1)
    tier.reserve(0, PAGE)
    tier.write(0, page_of(3)).wait()
    for ring in (tier._going_down, tier._coming_up):
        ring.take()
    tier.finish()
    frame = page_of(0)
    tier.read(0, frame).wait()
    assert (frame == 3).all()
    tier.write(0, page_of(4)).wait()
    tier.read(0, frame).wait()
    assert (frame == 4).all()
    tier.close()


def test_a_frame_is_filled_again_while_the_disk_still_writes_what_was_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = SimulatedAccelerator()
    tier = tier_in(tmp_path, accelerator)
    for page in range(2):
        tier.reserve(page, PAGE)
    frame = accelerator.allocate(PAGE)
    with accelerator:
        frame.fill_(1)
        tier.write(1, frame, after=[accelerator.mark(accelerator.main)]).wait()
        may_go_on, write_page = threading.Event(), staged.write_page

        def slow(*args: Any) -> None:
            assert may_go_on.wait(10)
            write_page(*args)

        monkeypatch.setattr(staged, "write_page", slow)
        frame.fill_(2)
        write = tier.write(0, frame, after=[accelerator.mark(accelerator.main)])
        tier.read(1, frame, after=[write]).wait()
        assert bool((frame == 1).all())
        assert not write.done()
        may_go_on.set()
        write.wait()
        tier.read(0, frame, after=[accelerator.mark(accelerator.main)]).wait()
        assert bool((frame == 2).all())
        tier.close()


def test_a_write_waits_for_room_in_the_ring_and_not_for_ever(tmp_path: Path) -> None:
    tier = tier_in(tmp_path, InOrder(), ring_pages=1)
    frames = [page_of(page) for page in range(30)]
    for page in range(30):
        tier.reserve(page, PAGE)
    writes = [tier.write(page, frames[page]) for page in range(30)]
    reads = [tier.read(page, frames[29 - page], after=[writes[29 - page]]) for page in range(30)]
    for transfer in (*writes, *reads):
        transfer.wait()
    assert [int(frame[7]) for frame in frames] == list(reversed(range(30)))
    tier.close()


def test_the_rings_are_charged_at_once_and_refunded_at_close(tmp_path: Path) -> None:
    ledger = Ledger(5 * PAGE)
    tier = tier_in(tmp_path, InOrder(), ring_pages=2, ledger=ledger)
    assert ledger.charged == 4 * PAGE
    tier.close()
    tier.close()
    assert ledger.charged == 0


@pytest.mark.parametrize("room", [0, 1])
def test_a_budget_without_room_for_the_rings_is_refused_and_nothing_stays_charged(tmp_path: Path, room: int) -> None:
    ledger = Ledger(room * PAGE)
    with pytest.raises(SpillError, match="max_host_memory has no room for the pinned pages of 4 KiB"):
        tier_in(tmp_path, InOrder(), ring_pages=1, ledger=ledger)
    assert ledger.charged == 0


def test_a_failed_transfer_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = tier_in(tmp_path, InOrder(), ring_pages=1)
    tier.reserve(0, PAGE)

    def broken(*_: object) -> None:
        raise SpillError(5, "the disk is broken")

    frame = page_of(3)
    for name, start in (("write_page", tier.write), ("read_page", tier.read)):
        with monkeypatch.context() as patch:
            patch.setattr(staged, name, broken)
            for _ in range(3):
                transfer = start(0, frame)
                with pytest.raises(SpillError, match="the disk is broken"):
                    transfer.wait()
                assert transfer.done()
        if name == "write_page":
            tier.write(0, frame).wait()
    into = page_of(0)
    tier.read(0, into).wait()
    assert torch.equal(into, frame)
    tier.close()


def test_a_device_that_refuses_a_copy_is_a_failed_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = InOrder()
    tier = tier_in(tmp_path, streams, ring_pages=1)
    tier.reserve(0, PAGE)
    frame = page_of(3)
    tier.write(0, frame).wait()

    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(streams, "copy_down", refuse)
    monkeypatch.setattr(streams, "copy_up", refuse)
    for start in (tier.write, tier.read):
        for _ in range(3):
            with pytest.raises(SpillError, match="illegal memory access"):
                start(0, frame).wait()
    tier.close()
