"""Page-sized buffers in the memory that updates run in. The budget is their number, so it cannot be exceeded.

A frame is charged before it is allocated: `grow` takes the right to one more, `take` allocates it at first need.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pagedopt.paging.budget import Holding, Ledger
from pagedopt.tiers.base import Transfer


@dataclass(slots=True, eq=False)
class Frame:
    """A buffer of one page.

    Attributes:
        buffer: uint8 [page_nbytes] on the pager's device.
        pending: the write that still reads the buffer for the page that was in it before; what comes next follows it.
        stream: all that was done with the buffer so far, transfers under way aside, comes before what this stream is
            given next; None where everything is in order by itself.
        is_zero: whether it has been zero since it was allocated; zeroing it again would touch all of it once more.
    """

    buffer: Tensor
    pending: Transfer | None = None
    stream: Any = None
    is_zero: bool = False


class FramePool:
    """The frames of one device pager.

    Args:
        page_nbytes: bytes of a frame.
        allocate: makes a buffer, uint8 [page_nbytes].
        ledger: what frames are charged to.
        allocates_zeros: whether a buffer that was just made is zero.
    """

    def __init__(
        self, page_nbytes: int, allocate: Callable[[int], Tensor], ledger: Ledger, *, allocates_zeros: bool = False
    ) -> None:
        self._page_nbytes = page_nbytes
        self._allocate = allocate
        self._ledger = ledger
        self._allocates_zeros = allocates_zeros
        self._all: dict[Frame, None] = {}
        self._idle: list[Frame] = []
        self._holding = Holding()

    @property
    def budget_nbytes(self) -> int | None:
        """The most bytes that frames can take; None: unlimited, or automatic and not yet measured."""
        return self._ledger.known_limit

    @property
    def num_charged(self) -> int:
        """Frames that the budget was charged with."""
        return self._holding.nbytes // self._page_nbytes

    @property
    def num_allocated(self) -> int:
        """Frames that exist."""
        return len(self._all)

    @property
    def num_available(self) -> int:
        """Frames that `take` can give without anything leaving."""
        return len(self._idle) + self.num_charged - self.num_allocated

    def grow(self) -> bool:
        """Charge one more frame; return False if the budget has no room for it."""
        return self._ledger.charge(self._page_nbytes, self._holding)

    def shrink(self) -> None:
        """Give one frame that is not in use back to the budget."""
        assert self.num_available, "no frame is idle"
        if self.num_allocated == self.num_charged:
            del self._all[self._idle.pop()]
        self._ledger.refund(self._page_nbytes, self._holding)

    def take(self) -> Frame | None:
        """Return a frame with arbitrary bytes and nothing pending, None if all are in use."""
        if self._idle:
            return self._idle.pop()
        if self.num_allocated == self.num_charged:
            return None
        frame = Frame(self._allocate(self._page_nbytes), is_zero=self._allocates_zeros)
        self._all[frame] = None
        return frame

    def give(self, frame: Frame) -> None:
        """Take back a frame that no page and no transfer uses."""
        frame.pending, frame.is_zero = None, False
        self._idle.append(frame)

    def take_back(self, used: Collection[Frame]) -> None:
        """Take back all frames but those that are `used`, whoever had them; no transfer may be under way."""
        self._idle = []
        for frame in self._all:
            if frame not in used:
                self.give(frame)
