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
        frame: the frame it is in; None unless READING, RESIDENT or LEAVING, or LOST with somebody still in it.
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
        self.is_offered = False
        """Whether somebody was told of the open page, and is about to claim it: until then it is not dropped."""
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

    def new(self) -> Page:
        """Return a page with a number of its own, which is not in the table yet."""
        self._num_opened += 1
        return Page(self._num_opened - 1)

    def add(self, page: Page) -> None:
        """Take a new page in; it is the open one from now on."""
        self._pages[page.number] = page
        self.open, self.is_offered = page, False

    def claim(self, page: Page, end: int) -> None:
        """`page` is used up to byte `end` by one more."""
        used = max(page.used, end)
        self.num_claimed += page.claims == 0
        page.claims += 1
        page.used = used
        self.is_offered = False

    def unclaim(self, page: Page) -> bool:
        """`page` is used by one less; return whether nobody needs it any more."""
        assert page.claims, f"page {page.number} is released more often than claimed"
        page.claims -= 1
        self.num_claimed -= page.claims == 0
        return page.claims == 0 and not (page is self.open and self.is_offered)

    def is_needed(self, page: Page) -> bool:
        """Return whether `page` is claimed, or about to be."""
        return page.claims > 0 or (page is self.open and self.is_offered)

    @property
    def is_in_use(self) -> bool:
        """Whether any page is claimed, or about to be."""
        return self.num_claimed > 0 or self.is_offered

    def offer(self, page: Page) -> None:
        """Somebody is told of `page`, the open one."""
        self.is_offered = page is self.open

    def close(self) -> Page | None:
        """Let the open page be filled no further, and return it."""
        page, self.open, self.is_offered = self.open, None, False
        return page

    def remove(self, page: Page) -> None:
        del self._pages[page.number]
        if self.open is page:
            self.open, self.is_offered = None, False

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
