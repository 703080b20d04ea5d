"""What observers of a pager are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pagedopt.tiers.base import Home, Span, Transfer


class PageEvent(NamedTuple):
    """What happened to a page.

    Attributes:
        name: of what was done with it: `hit` or `fault` when it is about to be pinned, `pin, unpin, prefetch`; `read`
            and `write` when a transfer is started, `filled` and `saved` when it is known to have ended well, `wait`
            when somebody had to wait for it; `evict` when another page takes its frame, `drop` when its frame goes back
            to the pool, `gone` when it is no more. To a new observer, of every page that there is: `resident` or
            `away`.
        home: the tier of a page that has room in one.
        span: of `filled` and `saved`, when the bytes moved, if that is known; of `wait`, the time waited.
        moving: of `filled` and `saved`, the transfer if a stream is still at it: it has the span when it is done.
    """

    name: str
    page: int
    home: Home | None
    span: Span | None
    moving: Transfer | None = None


Observer = Callable[[PageEvent], None]
"""Told what happens to pages, within the turn in which it does: it must not call the pager."""
