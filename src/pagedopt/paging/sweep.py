"""The policy of a step: one pass over pages, in order, with reads ahead of it and writes behind it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from pagedopt.paging.device import DevicePager


def sweep(pager: DevicePager, pages: Sequence[int], *, dirty: bool = True) -> Generator[tuple[int, Tensor], None, None]:
    """Yield each page with its frame, uint8 [page_nbytes], pinned until the next one is asked for.

    Ahead of each page those expected next are read: the rest of the pass, and after it whatever followed the last time
    (a training step is a cycle). A page that the caller leaves with an exception is unpinned like any other.

    Args:
        pager: whose pages they are.
        pages: in the order of the pass; a page may be named once.
        dirty: whether the caller changes the frames.

    Raises:
        StateLostError, SpillError, BudgetError: as of `DevicePager.pin`.
    """
    pager.expect(pages)
    for page in pages:
        pager.look_ahead(page)
        frames = pinned(pager, page, dirty=dirty)
        try:
            yield page, next(frames)
        finally:
            frames.close()


def pinned(pager: DevicePager, page: int, *, dirty: bool) -> Generator[Tensor, None, None]:
    """Yield the frame of one page, pinned until the generator is closed. Raises as `DevicePager.pin`."""
    done: list[bool] = []
    frame = pager.pin(page)
    try:
        yield frame
    finally:
        try:
            pager.unpin(page, dirty=dirty, done=done)
        except BaseException:
            if not done:  # an interrupt on the way in
                pager.unpin(page, dirty=dirty)
            raise
