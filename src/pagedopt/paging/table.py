"""The pages: what is known about each, and the one that is being filled. Bookkeeping only: nothing moves here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from pagedopt.paging.frames import Frame
from pagedopt.tiers.base import Transfer


class PageState(Enum):
    """Where a page is; see `paging.pager` for the diagram."""

    EVICTED = auto()
    """in no frame; its bytes are at home, or zero if it was never written"""
    READING = auto()
    """its frame is being filled"""
    RESIDENT = auto()
    """its frame holds its bytes"""
    LEAVING = auto()
    """as resident, and saved or being saved: whoever needs its frame may take it"""
    LOST = auto()
    """its bytes are gone or half updated"""


@dataclass(slots=True, eq=False)
class Page:
    """What is known about one page.

    Attributes:
        number: its name for everybody else.
        used: bytes claimed, from the start of the page on.
        claims: how many times it was claimed and not released.
        frame: the frame it is in; None unless READING, RESIDENT or LEAVING.
        transfer: the read that fills its frame, or the last write from it; None once it was waited for.
        pins: how many users are in its frame.
        is_hint: whether the read under way was a prefetch, which may fail without making a pin fail.
        is_dirty: whether its frame holds what its home does not.
        is_stored: whether it was ever written home (else it is zero, and nothing is read).
        is_doomed: whether it goes with its last pin.
        next_page: the page expected to be pinned after it; None: unknown.
    """

    number: int
    used: int = 0
    claims: int = 0
    state: PageState = PageState.EVICTED
    frame: Frame | None = None
    transfer: Transfer | None = None
    pins: int = 0
    is_hint: bool = False
    is_dirty: bool = False
    is_stored: bool = False
    is_doomed: bool = False
    next_page: int | None = None


class PageTable:
    """All pages of one device pager by number. A number is never used again."""

    def __init__(self) -> None:
        self._pages: dict[int, Page] = {}
        self._num_opened = 0
        self._last_in_line: int | None = None
        self.open: Page | None = None
        self.num_claimed = 0

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, number: int) -> bool:
        return number in self._pages

    def __getitem__(self, number: int) -> Page:
        try:
            return self._pages[number]
        except KeyError:
            raise KeyError(f"page {number} was released or never opened") from None

    def values(self) -> Iterable[Page]:
        return self._pages.values()

    def add(self) -> Page:
        """Return a new page, which is the open one from now on."""
        page = self.open = Page(self._num_opened)
        self._num_opened += 1
        self._pages[page.number] = page
        return page

    def claim(self, page: Page, end: int) -> None:
        """`page` is used up to byte `end` by one more."""
        self.num_claimed += page.claims == 0
        page.claims += 1
        page.used = max(page.used, end)

    def unclaim(self, page: Page) -> bool:
        """`page` is used by one less; return whether it was the last."""
        assert page.claims, f"page {page.number} is released more often than claimed"
        page.claims -= 1
        self.num_claimed -= page.claims == 0
        return page.claims == 0

    def remove(self, page: Page) -> None:
        del self._pages[page.number]
        if self.open is page:
            self.open = None

    def line_up(self, numbers: Iterable[int]) -> None:
        """Expect these pages to be pinned in this order, after those that were lined up before."""
        previous = self._pages.get(-1 if self._last_in_line is None else self._last_in_line)
        for number in numbers:
            if previous is not None and previous.number != number:
                previous.next_page = number
            previous = self[number]
        if previous is not None:
            self._last_in_line = previous.number

    def following(self, page: Page, count: int) -> list[Page]:
        """Return the pages expected after `page`, at most `count`, without it and without repetition."""
        pages: list[Page] = []
        numbers = [page.number]  # a few, which is quicker to look through than a set
        number = page.next_page
        while number is not None and len(numbers) <= count and number not in numbers:
            coming = self._pages.get(number)
            if coming is None:
                break
            numbers.append(number)
            pages.append(coming)
            number = coming.next_page
        return pages
