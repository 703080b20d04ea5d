"""After a turn that was cut short: Ctrl-C, an observer that raises or a frame that cannot be allocated may come between
any two lines, and what the turn was at is then half done.

The next turn begins with `mend`. It waits until nothing moves, whoever started it, and keeps what is certain:

| a page was      | it is then | because                                                                      |
|-----------------|------------|------------------------------------------------------------------------------|
| RESIDENT        | RESIDENT   | its frame holds its bytes; it becomes clean only once its write is known      |
| LEAVING         | RESIDENT   | its frame is still its own                                                   |
| READING         | EVICTED    | whether its read was started is not known, and its bytes are at home, too    |
| lost, in a list | LOST       |                                                                              |
| not needed      | gone       | or with its last pin                                                         |

All frames that belong to no page are idle again. Mending may itself be cut short; then the next turn begins anew.
"""

from __future__ import annotations

from pagedopt.paging.residency import Residency
from pagedopt.paging.table import Page, PageState


def mend(residency: Residency) -> None:
    """Make `residency` what it says it is: the invariants of `paging.pager` hold."""
    if residency.tier is not None:
        residency.tier.finish()
    for number in list(residency.writing):
        residency.end_write(number)
    for page in residency.table.values():
        _settle(residency, page)
    residency.leaving.clear()
    used = {page.frame for page in residency.table.values() if page.frame is not None}
    residency.frames.take_back(used)
    residency.replacement.reset(
        [page.number for page in residency.table.values() if page.state is PageState.RESIDENT and not page.pins]
    )
    for page in list(residency.table.values()):
        if not residency.table.is_needed(page):
            residency.drop(page)
    while residency.frames.num_charged > len(residency.table) and residency.frames.num_available:
        residency.frames.shrink()
    if not residency.table.is_in_use:
        residency.close_tier()
    for number in [number for number in residency.lost if number not in residency.table]:
        del residency.lost[number]


def _settle(residency: Residency, page: Page) -> None:
    if page.number in residency.lost:
        page.state, page.is_dirty = PageState.LOST, False
    elif page.frame is None or page.state is PageState.READING:
        page.state = PageState.EVICTED
    else:
        page.state = PageState.RESIDENT
    if page.state is PageState.EVICTED or (page.state is PageState.LOST and not page.pins):
        page.frame = None
    page.transfer = None
