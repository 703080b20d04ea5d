"""Pinned host memory in a few large pieces, handed out by the page: each allocation of it takes milliseconds.

A slab is a power of two, as torch's pinned allocator would round it to one, and every byte of it is charged before it
is allocated. Slabs double the memory, page by page at first, up to 64 MiB each; one whose pages are all given back is
given back itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedopt.tiers.buffers import new_host_buffer
from pagedopt.tiers.streams import Mark
from pagedopt.units import format_bytes

MAX_SLAB_NBYTES = 64 << 20
"""Pinned at a few GB/s: some 20 ms each, and 1,600 of them for 100 GiB."""


@dataclass(slots=True, eq=False)
class Slab:
    """One allocation.

    Attributes:
        memory: None until a page of it is first needed.
        free: the pages that nobody has.
        last: the copy that used each page last.
    """

    nbytes: int
    num_pages: int
    memory: Tensor | None = None
    free: list[int] = field(default_factory=list)
    last: dict[int, Mark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """The room of one page in a slab."""

    slab: Slab
    index: int


class Slabs:
    """Room for pages in pinned memory.

    Args:
        page_nbytes: bytes of a page.
        charge: takes bytes of RAM from the budget; False if it has not that many.
        refund: gives them back.
        allocate: makes a slab, uint8 [nbytes].
        finish: returns when nothing copies from or to slabs any more; called before one is given back.
        give_back: returns to the system what torch keeps of slabs that are gone.
    """

    def __init__(
        self,
        page_nbytes: int,
        charge: Callable[[int], bool],
        refund: Callable[[int], None],
        *,
        allocate: Callable[[int], Tensor] = new_host_buffer,
        finish: Callable[[], None] = lambda: None,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._page_nbytes = page_nbytes
        self._charge, self._refund = charge, refund
        self._allocate, self._finish, self._give_back = allocate, finish, give_back
        self._slabs: list[Slab] = []
        self._with_room: list[Slab] = []
        self.nbytes = 0
        """Bytes charged."""

    @property
    def num_slabs(self) -> int:
        """Allocations made, or to be made when a page in them is first needed."""
        return len(self._slabs)

    def take(self) -> Room | None:
        """Return room for a page; None if the budget has none."""
        if not self._with_room and not self._add():
            return None
        slab = self._with_room[-1]
        room = Room(slab, slab.free.pop())
        if not slab.free:
            self._with_room.pop()
        return room

    def memory(self, room: Room) -> Tensor:
        """Return the memory of a page, uint8 [page_nbytes].

        Raises:
            MemoryError: the system gives no more.
        """
        slab = room.slab
        if slab.memory is None:
            slab.memory = self._allocate(slab.nbytes)
        start = room.index * self._page_nbytes
        return slab.memory[start : start + self._page_nbytes]

    def give(self, room: Room) -> None:
        """Take back the room of a page."""
        slab = room.slab
        slab.free.append(room.index)
        if len(slab.free) == 1:
            self._with_room.append(slab)
        if len(slab.free) == slab.num_pages:
            self._drop(slab)

    def _add(self) -> bool:
        smallest = _power_of_two(self._page_nbytes)
        nbytes = max(min(_power_of_two(self.nbytes), MAX_SLAB_NBYTES), smallest)
        while not self._charge(nbytes):
            nbytes //= 2
            if nbytes < smallest:
                return False
        num_pages = nbytes // self._page_nbytes
        slab = Slab(nbytes, num_pages, free=list(range(num_pages - 1, -1, -1)))
        self._slabs.append(slab)
        self._with_room.append(slab)
        self.nbytes += nbytes
        return True

    def _drop(self, slab: Slab) -> None:
        self._with_room.remove(slab)
        self._slabs.remove(slab)
        if slab.memory is not None:
            self._finish()
            slab.memory = None
            self._give_back()
        self.nbytes -= slab.nbytes
        self._refund(slab.nbytes)


def _power_of_two(nbytes: int) -> int:
    """Return the smallest power of two that is at least `nbytes`."""
    return 1 << max(nbytes - 1, 0).bit_length()


class PinnedMemory:
    """Allocates pinned memory; from the first time that the system refuses, pageable memory, which it says once."""

    def __init__(self) -> None:
        self.is_refused = False

    def __call__(self, nbytes: int) -> Tensor:
        if not self.is_refused:
            try:
                with torch.inference_mode(mode=False):  # an I/O thread copies into it, and is in no such mode
                    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
            except RuntimeError as error:
                self.is_refused = True
                warnings.warn(
                    f"the system pins no {format_bytes(nbytes)} of RAM ({_first_line(error)}), so pages go through "
                    "memory that is not pinned, and copies are slower and wait for each other; raise the limit of "
                    "locked memory (ulimit -l) or lower max_host_memory",
                    stacklevel=2,
                )
        return new_host_buffer(nbytes)

    def give_back(self) -> None:
        """Return to the system the pinned memory that nobody holds: torch keeps it for the next allocation."""
        # The public name is of torch 2.10; before it there is only the one that it stands for.
        empty = getattr(torch.accelerator, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache", None)  # noqa: SLF001
        if empty is not None and torch.accelerator.is_available():
            empty()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
