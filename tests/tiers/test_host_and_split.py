"""Pages in RAM, and pages that go where there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pagedopt.errors import SpillError
from pagedopt.paging.budget import Ledger
from pagedopt.tiers.base import EndedTransfer
from pagedopt.tiers.disk import DiskTier
from pagedopt.tiers.host import HostTier
from pagedopt.tiers.slabs import Slabs
from pagedopt.tiers.split import SplitTier
from pagedopt.tiers.streams import InOrder
from simulated_accelerator import RaceError, SimulatedAccelerator

PAGE = 4096


def split(folder: Path, host_pages: int) -> tuple[SplitTier, Ledger]:
    ledger = Ledger(host_pages * PAGE)
    return SplitTier(host_tier(ledger), DiskTier(PAGE, folder)), ledger


def host_tier(ledger: Ledger) -> HostTier:
    return HostTier(Slabs(PAGE, ledger.charge, ledger.refund), InOrder())


def value(number: int) -> torch.Tensor:
    return torch.full((PAGE,), number, dtype=torch.uint8)


def test_a_host_page_is_charged_when_it_is_reserved_and_refunded_when_it_is_released() -> None:
    ledger = Ledger(2 * PAGE)
    tier = host_tier(ledger)
    tier.reserve(0, PAGE)
    tier.reserve(1, PAGE)
    with pytest.raises(SpillError, match="max_host_memory has no room for a page of 4 KiB; raise it"):
        tier.reserve(2, PAGE)
    assert ledger.charged == tier.usage.host_nbytes == 2 * PAGE
    tier.release(0)
    tier.reserve(2, PAGE)
    tier.close()
    tier.close()
    assert ledger.charged == 0


def test_a_host_page_reads_back_as_last_written() -> None:
    tier = host_tier(Ledger(None))
    tier.reserve(0, PAGE)
    source = value(3)
    tier.write(0, source).wait()
    source.zero_()
    into = torch.empty(PAGE, dtype=torch.uint8)
    transfer = tier.read(0, into)
    assert transfer.done()
    transfer.wait()
    assert (into == 3).all()


def test_a_host_copy_follows_what_it_must_and_hands_failures_to_its_waiter() -> None:
    tier = host_tier(Ledger(None))
    tier.reserve(0, PAGE)
    tier.write(0, value(3)).wait()
    into = value(9)
    broken = tier.read(0, into, after=[EndedTransfer(SpillError("it failed before"))])
    with pytest.raises(SpillError, match="it failed before"):
        broken.wait()
    assert (into == 9).all()
    wrong = tier.write(0, torch.zeros(PAGE + 1, dtype=torch.uint8))
    with pytest.raises(SpillError, match="could not copy a page"):
        wrong.wait()


@pytest.mark.parametrize("forgets", [False, True])
def test_copies_in_the_same_host_memory_follow_each_other_whoever_it_belongs_to(forgets: bool) -> None:
    accelerator = SimulatedAccelerator(eagerness=0.0)
    slabs = Slabs(PAGE, lambda _: True, lambda _: None)
    tier = HostTier(slabs, accelerator)
    first, second, third = (accelerator.allocate(PAGE) for _ in range(3))
    tier.reserve(9, PAGE)  # keeps the slab
    tier.reserve(0, PAGE)

    def forget() -> None:
        if forgets:
            for slab in slabs._slabs:
                slab.last.clear()

    def race() -> None:
        with accelerator:
            first.fill_(1)
            second.fill_(2)
            tier.write(0, first, after=[accelerator.mark(accelerator.main)])
            forget()
            tier.read(0, third)
            tier.release(0)
            tier.reserve(1, PAGE)
            forget()
            tier.write(1, second, after=[accelerator.mark(accelerator.main)])
            accelerator.mark(accelerator.down).synchronize()
            accelerator.mark(accelerator.up).wait()
            assert bool((third == 1).all())

    if forgets:
        with pytest.raises(RaceError):
            race()
    else:
        race()


def test_pages_go_to_the_host_while_it_has_room_and_then_to_the_disk(tmp_path: Path) -> None:
    tier, ledger = split(tmp_path, 2)
    for page in range(5):
        tier.reserve(page, PAGE)
        tier.write(page, value(page)).wait()
    assert [tier.home(page) for page in range(5)] == ["host", "host", "disk", "disk", "disk"]
    assert (tier.usage.host_nbytes, tier.usage.disk_nbytes) == (2 * PAGE, 3 * PAGE)
    assert tier.describe().startswith("8 KiB in RAM, in 2 slabs of 8 KiB; 16 KiB spill file in")
    for page in range(5):
        into = torch.empty(PAGE, dtype=torch.uint8)
        tier.read(page, into).wait()
        assert (into == page).all()
    tier.close()
    assert ledger.charged == 0


def test_a_home_is_fixed_until_the_page_is_released(tmp_path: Path) -> None:
    tier, _ = split(tmp_path, 1)
    for page in range(3):
        tier.reserve(page, PAGE)
    tier.release(0)
    assert tier.home(1) == tier.home(2) == "disk"
    tier.reserve(3, PAGE)
    assert tier.home(3) == "host"
    tier.close()


def test_a_page_that_fits_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, ledger = split(tmp_path, 0)

    def full(page: int, nbytes: int) -> None:
        raise SpillError(28, "the disk is full")

    monkeypatch.setattr(tier._tiers[1], "reserve", full)
    with pytest.raises(SpillError, match="the disk is full"):
        tier.reserve(0, PAGE)
    assert ledger.charged == 0
    with pytest.raises(KeyError):
        tier.home(0)
