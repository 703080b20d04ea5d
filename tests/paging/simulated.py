"""A tier whose transfers end when they are told to, and that watches what the pager does with frames meanwhile.

It breaks off the test as soon as the pager uses bytes it must not use: a frame handed out or written from while
it is being filled, one changed while it is being saved, a read into a frame that an earlier write still needs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.paging.budget import Ledger
from pagedopt.paging.device import DevicePager
from pagedopt.paging.frames import FramePool
from pagedopt.paging.table import PageState
from pagedopt.tiers.base import Home, TierUsage, Transfer

PAGE_NBYTES = 8
POISON = 0xEE


class Faults:
    """Which operations of a run fail: the `nth` (from 0), and with `lasting` every one after it."""

    def __init__(self, nth: int | None = None, *, lasting: bool = False) -> None:
        self.nth, self.lasting = nth, lasting
        self.num_operations = 0
        self.failed: list[tuple[str, int]] = []

    def strike(self, operation: str, page: int) -> SpillError | None:
        number, self.num_operations = self.num_operations, self.num_operations + 1
        if self.nth is None or number < self.nth or (number > self.nth and not self.lasting):
            return None
        self.failed.append((operation, page))
        return SpillError(5, f"operation {number} ({operation} of page {page}) was told to fail")


@dataclass(eq=False)
class SimulatedTransfer:
    tier: SimulatedTier
    kind: str
    page: int
    tensor: Tensor
    after: tuple[Transfer, ...]
    previous: SimulatedTransfer | None
    image: Tensor | None = None  # of what is written, as it was when the write started
    error: SpillError | None = None
    is_done: bool = False

    def done(self) -> bool:
        return self.is_done

    def wait(self) -> None:
        self.end()
        if self.error is not None:
            raise SpillError(*self.error.args)

    def span(self) -> None:
        return None

    def is_ready(self) -> bool:
        return all(t.done() for t in self.after) and (self.previous is None or self.previous.is_done)

    def end(self) -> None:
        if self.is_done:
            return
        if self.previous is not None:
            self.previous.end()
        for transfer in self.after:
            try:
                transfer.wait()
            except SpillError as error:
                self.error = SpillError(5, f"what it follows failed: {error}")
        self.error = self.error or self.tier.faults.strike(self.kind, self.page)
        if self.kind == "write":
            self._store()
        else:
            self._fill()
        self.is_done = True
        self.tier.under_way.remove(self)

    def _fill(self) -> None:
        if self.error is None and self.page not in self.tier.stored:
            self.error = SpillError(5, f"page {self.page} was never saved whole")
        if self.error is None:
            self.tensor.copy_(self.tier.stored[self.page])
        else:
            self.tensor.fill_(POISON)

    def _store(self) -> None:
        assert self.image is not None
        assert torch.equal(self.tensor, self.image), f"the frame of page {self.page} changed while it was saved"
        if self.error is None:
            self.tier.stored[self.page] = self.image
        else:
            self.tier.stored.pop(self.page, None)  # half of it was overwritten


@dataclass(eq=False)
class SimulatedTier:
    """A `Tier` in a dict. `room` pages fit; transfers end at `wait` or, in any order that is allowed, at `end_some`."""

    faults: Faults = field(default_factory=Faults)
    room: int | None = None
    is_synchronous: bool = False
    stored: dict[int, Tensor] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)
    under_way: list[SimulatedTransfer] = field(default_factory=list)
    last: dict[int, SimulatedTransfer] = field(default_factory=dict)
    num_reads: int = 0
    num_writes: int = 0
    is_closed: bool = False

    @property
    def usage(self) -> TierUsage:
        return TierUsage(disk_nbytes=sum(self.reserved.values()))

    def describe(self) -> str:
        return "simulated"

    def home(self, page: int) -> Home:
        assert page in self.reserved
        return "disk"

    def reserve(self, page: int, nbytes: int) -> None:
        assert page not in self.reserved
        error = self.faults.strike("reserve", page)
        if error is not None or (self.room is not None and len(self.reserved) >= self.room):
            raise error or SpillError(28, "the simulated disk is full")
        self.reserved[page] = nbytes

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        self.num_reads += 1
        return self._start("read", page, into, after)

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        self.num_writes += 1
        return self._start("write", page, source, after)

    def release(self, page: int) -> None:
        assert all(transfer.page != page for transfer in self.under_way), "released in the middle of a transfer"
        del self.reserved[page]
        self.stored.pop(page, None)
        self.last.pop(page, None)

    def finish(self) -> None:
        for transfer in list(self.under_way):
            transfer.end()

    def close(self) -> None:
        for transfer in list(self.under_way):
            transfer.end()
        self.reserved.clear()
        self.stored.clear()
        self.last.clear()
        self.is_closed = True

    def end_some(self, rng: random.Random) -> None:
        """End one transfer that may end now, whichever."""
        ready = [transfer for transfer in self.under_way if transfer.is_ready()]
        if ready:
            rng.choice(ready).end()

    def check_idle(self, frame: Tensor) -> None:
        """The caller is about to use `frame`."""
        users = [transfer for transfer in self.under_way if _same(transfer.tensor, frame)]
        assert not users, f"a frame is used in the middle of the {users[0].kind} of page {users[0].page}"

    def _start(self, kind: str, page: int, tensor: Tensor, after: Sequence[Transfer]) -> Transfer:
        assert page in self.reserved, f"{kind} of page {page}, which has no room"
        assert tensor.dtype == torch.uint8
        for other in self.under_way:
            if _same(other.tensor, tensor):
                assert other in after, f"{kind} of page {page} does not wait for the {other.kind} of page {other.page}"
        image = tensor.clone() if kind == "write" else None
        transfer = SimulatedTransfer(self, kind, page, tensor, tuple(after), self.last.get(page), image)
        self.last[page] = transfer
        self.under_way.append(transfer)
        if self.is_synchronous:
            transfer.end()
        return transfer


def _same(left: Tensor, right: Tensor) -> bool:
    return left.data_ptr() == right.data_ptr()


def new_poisoned_buffer(nbytes: int) -> Tensor:
    """Uninitialised memory is never zero by accident."""
    return torch.full((nbytes,), POISON, dtype=torch.uint8)


def simulated_pager(
    num_frames: int | None, tier: SimulatedTier, *, depth: int = 1, page_nbytes: int = PAGE_NBYTES
) -> DevicePager:
    """Return a pager of tiny pages over `tier`; `num_frames` None: unlimited."""
    ledger = Ledger(None if num_frames is None else num_frames * page_nbytes)
    return DevicePager(
        page_nbytes=page_nbytes,
        prefetch_depth=depth,
        frames=FramePool(page_nbytes, new_poisoned_buffer, ledger),
        open_tier=lambda: tier,
        budget_name="max_host_memory",
    )


def open_pages(pager: DevicePager, count: int) -> list[int]:
    """Return `count` new full pages with one claim each."""
    pages = []
    for _ in range(count):
        page, _ = pager.open_page()
        pager.claim(page, pager.page_nbytes)
        pager.close_page()
        pages.append(page)
    return pages


def check_invariants(pager: DevicePager) -> None:
    """The numbered invariants of `paging.pager`."""
    pages = list(pager._residency.table.values())
    frames = [page.frame for page in pages if page.frame is not None]
    assert len({id(frame) for frame in frames}) == len(frames)  # 1
    assert len(frames) + pager._residency.frames.num_available == pager._residency.frames.num_charged  # 2
    for page in pages:
        has_frame = page.state in (PageState.READING, PageState.RESIDENT, PageState.LEAVING)
        assert (page.frame is not None) == has_frame or (page.state is PageState.LOST and page.pins)  # 3
        assert page.pins == 0 or page.state in (PageState.RESIDENT, PageState.LOST)  # 4
        assert not page.is_dirty or page.state is PageState.RESIDENT  # 5
        assert (page.number in pager._residency.leaving) == (page.state is PageState.LEAVING)  # 6
        victim = (
            page.number in pager._residency.replacement._used or page.number in pager._residency.replacement._expected
        )
        assert victim == (page.state in (PageState.READING, PageState.RESIDENT) and page.pins == 0)  # 7
        assert page.state is PageState.READING or page.transfer is None or page.number in pager._residency.writing
        assert page.pins == 0 or page.transfer is None  # 4
