"""Which page leaves when a frame is needed: the one whose next use is farthest away, in O(1).

A training step is a cyclic sweep, so the page used last is the one needed last again: Belady's choice is the most
recently used page, where least recently used would never hit. Two kinds of pages are outside the cycle and go first:

    missed      prefetched, and not pinned when its turn came: the prediction was wrong
    stale       not pinned for longer than a whole cycle takes: its parameters have no gradients any more

Time is counted in turns: pins of another page than the one before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection


class Replacement:
    """The unpinned pages in frames, in the order in which they may be taken."""

    def __init__(self, prefetch_depth: int) -> None:
        self._patience = 2 * (prefetch_depth + 1)  # turns: a page read ahead is pinned within prefetch_depth
        self._used: OrderedDict[int, int] = OrderedDict()  # page -> turn of its last use, in that order
        self._expected: OrderedDict[int, int] = OrderedDict()  # page -> turn at which it was read ahead
        self._turn = 0
        self._last = -1

    def expect(self, page: int) -> None:
        """`page` is being read ahead of its use."""
        self._expected[page] = self._turn

    def pin(self, page: int) -> None:
        """`page` is in use: it cannot be taken."""
        if page != self._last:
            self._turn += 1
            self._last = page
        self.forget(page)

    def unpin(self, page: int) -> None:
        """`page` was just used: it can be taken, and is needed last again."""
        self._used[page] = self._turn
        self._used.move_to_end(page)

    def forget(self, page: int) -> None:
        """`page` is pinned, leaves or is gone."""
        self._used.pop(page, None)
        self._expected.pop(page, None)

    def reset(self, pages: Collection[int]) -> None:
        """Just these can be taken; those that were used last stay last in line."""
        self._expected.clear()
        known = [page for page in self._used if page in pages]
        self._used = OrderedDict((page, self._used.get(page, self._turn)) for page in dict.fromkeys([*known, *pages]))

    def victim(self, num_pages: int) -> int | None:
        """Return the page that should leave, None if no used page can; `num_pages` is the longest possible cycle."""
        for pages, patience in ((self._expected, self._patience), (self._used, num_pages)):
            oldest = next(iter(pages.items()), None)
            if oldest is not None and self._turn - oldest[1] > patience:
                return oldest[0]
        return next(reversed(self._used), None)

    def last_resort(self) -> int | None:
        """Return the page read ahead that will be needed last, None if there is none."""
        return next(reversed(self._expected), None)
