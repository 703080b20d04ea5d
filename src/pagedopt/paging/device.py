"""The pages of one device, as optimizers use them: residency, one turn at a time.

turn       one call, under one lock
release    may come from a finalizer, which the garbage collector can run in the middle of a turn of its own
           thread: then it waits for nothing, and is done when that turn ends
fork       a child's frames are copies and serve it; a tier is its parent's, and is never touched
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from pagedopt.errors import BudgetError, SpillError
from pagedopt.paging.automatic import AutomaticBudget
from pagedopt.paging.frames import FramePool
from pagedopt.paging.residency import Observer, Residency
from pagedopt.paging.stats import PagingMemory, PagingStats
from pagedopt.tiers.base import Tier
from pagedopt.tiers.streams import InOrder, Streams


class DevicePager:
    """The pages of one device. Thread-safe.

    Args:
        page_nbytes: bytes of a page.
        prefetch_depth: pages read ahead, and as many written behind.
        frames: the frames, and with them the budget.
        open_tier: makes the home of pages that do not fit; called when the first page does not.
        budget_name: the argument to name where the budget is too small.
        streams: of the device that the frames are on.
        automatic: what decides how much memory frames may have from step to step; None: nothing changes.
    """

    def __init__(
        self,
        *,
        page_nbytes: int,
        prefetch_depth: int,
        frames: FramePool,
        open_tier: Callable[[], Tier],
        budget_name: str,
        streams: Streams | None = None,
        automatic: AutomaticBudget | None = None,
    ) -> None:
        self._residency = Residency(
            page_nbytes=page_nbytes,
            prefetch_depth=prefetch_depth,
            frames=frames,
            open_tier=open_tier,
            budget_name=budget_name,
            streams=streams or InOrder(),
        )
        self._budget_name = budget_name
        self._automatic = automatic
        self._lock = threading.Lock()
        self._unpinned = threading.Condition(self._lock)
        self._pins_of_thread: dict[int, int] = {}
        self._released: deque[int] = deque()
        self._pid = os.getpid()
        self._is_closed = False

    @property
    def page_nbytes(self) -> int:
        """Bytes of a page, and of each frame."""
        return self._residency.page_nbytes

    @property
    def prefetch_depth(self) -> int:
        """Pages read ahead of the one in use, and as many written behind it."""
        return self._residency.prefetch_depth

    @property
    def working_set(self) -> int:
        """Frames that a sweep needs at once."""
        return self._residency.working_set

    # -- space ---------------------------------------------------------------------------------------------------------

    def open_page(self) -> tuple[int, int]:
        """Return the page being filled and how many of its bytes are used; a new page if none is open.

        Raises:
            BudgetError: the budget has no room for the working set.
            SpillError: the page does not fit into frames, and its tier has no room for it.
        """
        with self._turn() as residency:
            if self._is_closed:
                raise RuntimeError("this pager is closed; pass another pager or make a new optimizer")
            page = residency.table.open or residency.new_page()
            return page.number, page.used

    def claim(self, page: int, end: int) -> None:
        """Use `page` up to byte `end`; it lives until it is released as often as it was claimed."""
        with self._turn() as residency:
            assert 0 <= end <= self.page_nbytes, f"byte {end} is not in a page"
            residency.table.claim(residency.table[page], end)

    def close_page(self) -> None:
        """Fill the open page no further: the next `open_page` is a new one."""
        with self._turn() as residency:
            page, residency.table.open = residency.table.open, None
            if page is not None and not page.claims:
                residency.drop(page)

    def release(self, page: int) -> None:
        """Give up one claim on `page`; at the last its frame and its room are free. Never waits for another turn."""
        if not self._is_foreign():
            self._released.append(page)
            self._drop_released()

    # -- residency -----------------------------------------------------------------------------------------------------

    def pin(self, page: int) -> Tensor:
        """Return the frame of `page`, uint8 [page_nbytes], which stays where it is until it is unpinned.

        Raises:
            StateLostError: a page of this pager is lost.
            SpillError, CorruptPageError: the page could not be read; it stays where it was.
            BudgetError: every frame is pinned by this thread.
            MemoryError, RuntimeError: a frame could not be allocated.
        """
        with self._turn() as residency:
            residency.refuse_lost()
            entry = residency.table[page]
            residency.count_use(entry)
            while not residency.occupy(entry):
                self._await_unpin(page)
                residency.refuse_lost()
                entry = residency.table[page]  # another thread may have released it meanwhile
            residency.settle(entry)
            entry.pins += 1
            residency.replacement.pin(page)
            self._count_pin(+1)
            residency.notify("pin", entry)
            assert entry.frame is not None
            return entry.frame.buffer

    def unpin(self, page: int, *, dirty: bool) -> None:
        """Give back a pin; `dirty` says whether the frame was changed. In the thread that pinned it."""
        with self._turn() as residency:
            entry = residency.table[page]
            assert entry.pins, f"page {page} is unpinned more often than pinned"
            entry.pins -= 1
            entry.is_dirty |= dirty
            assert entry.frame is not None
            residency.touch(entry.frame)
            self._count_pin(-1)
            residency.notify("unpin", entry)
            if entry.pins == 0:
                residency.retire(entry)
                self._unpinned.notify_all()

    def prefetch(self, page: int) -> None:
        """Start reading `page` if there is a frame for it: a hint, which changes nothing but time."""
        if self._residency.tier is None:  # asked without the lock, as is right for a hint: everything is resident
            return
        with self._turn() as residency:
            if page in residency.table:
                residency.read_ahead([residency.table[page]])

    def look_ahead(self, page: int) -> None:
        """Prefetch `page` and the `prefetch_depth` pages expected after it: what a sweep does before each page."""
        if self._residency.tier is None:
            return
        with self._turn() as residency:
            if page in residency.table:
                entry = residency.table[page]
                residency.read_ahead([entry, *residency.table.following(entry, self.prefetch_depth)])

    def fetch(self, pages: Sequence[int]) -> None:
        """Start reading what a sweep over `pages` needs first, as far as there are frames for it: a hint."""
        if self._residency.tier is None:
            return
        with self._turn() as residency:
            first = pages[: 1 + self.prefetch_depth]
            residency.read_ahead([residency.table[page] for page in first if page in residency.table])

    def expect(self, pages: Iterable[int]) -> None:
        """These pages will be pinned in this order: what write-behind looks ahead on. A hint."""
        with self._turn() as residency:
            residency.regrow()
            residency.table.line_up(pages)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def begin_step(self, *, is_part: bool = False) -> None:
        """Learn how much memory frames may have now, where the budget is automatic; in a part of a step, not always."""
        if self._automatic is not None:
            with self._turn() as residency:
                self._automatic.begin_step(residency.frames.num_allocated * self.page_nbytes, is_part=is_part)

    def end_step(self) -> None:
        """Give back the frames that the rest of the program needs more than state does, until the next step.

        Warns where they cannot be given back, because what is in them has no other room.
        """
        if self._automatic is not None:
            with self._turn() as residency:
                try:
                    residency.trim(self._automatic.keep_nbytes // self.page_nbytes)
                except SpillError as error:
                    warnings.warn(f"state stays on the device, which may run out of memory: {error}", stacklevel=2)
                self._automatic.end_step(residency.frames.num_allocated * self.page_nbytes)

    def flush(self) -> None:
        """Write every dirty page home, except pinned ones, and end all transfers.

        Raises:
            StateLostError: a page could not be written.
        """
        with self._turn() as residency:
            residency.flush()

    def fail(self, page: int, error: Exception) -> None:
        """`page` is half updated or gone: nothing is pinned here until it is released."""
        with self._turn() as residency:
            residency.lose(residency.table[page], error)

    def close(self) -> None:
        """Drop every page, frame, file and thread. Nothing can be opened or pinned any more."""
        if self._is_foreign():
            return
        with self._turn() as residency:
            self._is_closed = True
            for entry in list(residency.table.values()):
                residency.drop(entry)
            residency.close_tier()

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> PagingStats:
        """What was done so far."""
        with self._turn() as residency:
            return residency.counters.snapshot()

    def reset_stats(self) -> None:
        """Count from zero again."""
        with self._turn() as residency:
            residency.counters.reset()

    @property
    def memory(self) -> PagingMemory:
        """Where the pages are."""
        with self._turn() as residency:
            return residency.memory

    def memory_of(self, pages: Iterable[int]) -> PagingMemory:
        """Where some of the pages are: `frame_nbytes` are those of the frames that they are in."""
        with self._turn() as residency:
            return residency.memory_of(pages)

    def describe(self) -> str:
        """Return in words where pages go that have no frame."""
        with self._turn() as residency:
            return "every page has a frame" if residency.tier is None else residency.tier.describe()

    def observe(self, observer: Observer) -> None:
        """Tell `observer` where every page is, and from now on what happens to pages. Several may observe."""
        with self._turn() as residency:
            residency.observe(observer)

    def unobserve(self, observer: Observer) -> None:
        """Tell `observer` nothing more."""
        with self._turn() as residency:
            residency.unobserve(observer)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _turn(self) -> _Turn:
        return _Turn(self)

    def begin_turn(self) -> Residency:
        """Wait for the turn. For `_Turn`, which ends it."""
        if self._is_foreign():
            self._adopt()
        self._lock.acquire()
        return self._residency

    def end_turn(self) -> None:
        """End the turn, and do what was asked for meanwhile."""
        self._lock.release()
        self._drop_released()

    def _drop_released(self) -> None:
        """Do what `release` asked for, unless somebody has the turn: they do it when it ends.

        Looking again after the lock is given back misses nothing: what came meanwhile found it taken.
        """
        while self._released and self._lock.acquire(blocking=False):
            try:
                self._drop_next(self._residency)
            finally:
                self._lock.release()

    def _drop_next(self, residency: Residency) -> None:
        while self._released:
            page = self._released.popleft()
            if page in residency.table and residency.table.unclaim(residency.table[page]):
                residency.drop(residency.table[page])
        if residency.table.num_claimed == 0:
            residency.close_tier()

    def _await_unpin(self, page: int) -> None:
        """Let other threads have turns until one unpins, so that `page` may find a frame: a stall.

        Only threads that hold no pin wait here, so those that hold one always get on.
        """
        if self._pins_of_thread.get(threading.get_ident()):
            raise BudgetError(
                f"all {self._residency.frames.num_charged} frames are pinned; "
                f"raise {self._budget_name} or unpin pages before pinning more"
            )
        with self._residency.stalled(page):
            self._unpinned.wait()

    def _count_pin(self, change: int) -> None:
        thread = threading.get_ident()
        pins = self._pins_of_thread.pop(thread, 0) + change
        if pins > 0:
            self._pins_of_thread[thread] = pins

    # -- forks ---------------------------------------------------------------------------------------------------------

    def _is_foreign(self) -> bool:
        return self._pid != os.getpid()

    def _adopt(self) -> None:
        """Go on in a forked child, if all pages are in frames."""
        if self._residency.tier is not None:
            raise RuntimeError(
                "this optimizer's state is paged by the parent process; make a new optimizer in the forked child "
                "and load its state dict"
            )
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._unpinned = threading.Condition(self._lock)
        self._pid = os.getpid()


class _Turn:
    """A turn as a context; a class, because a step has many turns a page and a generator takes four times as long."""

    __slots__ = ("_pager",)

    def __init__(self, pager: DevicePager) -> None:
        self._pager = pager

    def __enter__(self) -> Residency:
        return self._pager.begin_turn()

    def __exit__(self, *exception: object) -> None:
        self._pager.end_turn()
