"""The pages of one device, as optimizers use them: residency, one turn at a time.

turn       one call, under one lock; what one leaves half done that was cut short, the next puts right
release    may come from a finalizer, which the garbage collector can run in the middle of a turn of its own
           thread: then it waits for nothing, and is done when that turn ends
fork       a child's frames are copies and serve it; a tier is its parent's, and is never touched
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from torch import Tensor

from pagedopt.errors import BudgetError, PagedOptError, SpillError, StateLostError
from pagedopt.paging.automatic import AutomaticBudget
from pagedopt.paging.events import Observer
from pagedopt.paging.frames import FramePool
from pagedopt.paging.mending import mend
from pagedopt.paging.residency import Residency
from pagedopt.paging.stats import PagingMemory, PagingStats
from pagedopt.tiers.base import Tier
from pagedopt.tiers.streams import InOrder, Streams

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _turn(method: Callable[Concatenate[DevicePager, _P], _T]) -> Callable[Concatenate[DevicePager, _P], _T]:
    """Make one turn of a method.

    A function around it and no context manager: those of `contextlib` can be interrupted between taking the lock and
    being able to give it back.
    """

    @wraps(method)
    def turn(self: DevicePager, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._is_foreign():
            self._adopt()
        try:
            with self._lock:
                try:
                    if self._is_cut:
                        self._put_right()
                    return method(self, *args, **kwargs)
                except PagedOptError:  # raised where everything is in order
                    raise
                except BaseException:
                    self._is_cut = True
                    self._unpinned.notify_all()
                    raise
        finally:
            self._drop_released()

    return turn


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
        self._pins_of_thread: defaultdict[int, int] = defaultdict(int)
        self._released: deque[int] = deque()
        self._pid = os.getpid()
        self._is_closed = False
        self._is_cut = False

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

    @_turn
    def open_page(self) -> tuple[int, int]:
        """Return the page being filled and how many of its bytes are used; a new page if none is open.

        It waits to be claimed or closed: until then it stays, though all others who claimed it may release it.

        Raises:
            BudgetError: the budget has no room for the working set.
            SpillError: the page does not fit into frames, and its tier has no room for it.
        """
        residency = self._residency
        if self._is_closed:
            raise RuntimeError("this pager is closed; pass another pager or make a new optimizer")
        page = residency.table.open or residency.new_page()
        residency.table.offer(page)
        return page.number, page.used

    @_turn
    def claim(self, page: int, end: int, claims: list[int] | None = None) -> None:
        """Use `page` up to byte `end`; it lives until it is released as often as it was claimed.

        `claims` gets the page as soon as it is claimed, whatever interrupts the caller; it is what `release_all` takes.
        """
        assert 0 <= end <= self.page_nbytes, f"byte {end} is not in a page"
        claims = [] if claims is None else claims
        table = self._residency.table
        table.claim(table[page], end)
        claims += (page,)  # no call since, so no interrupt

    @_turn
    def close_page(self) -> None:
        """Fill the open page no further: the next `open_page` is a new one."""
        residency = self._residency
        page = residency.table.close()
        if page is not None and not page.claims:
            residency.drop(page)

    def release(self, page: int) -> None:
        """Give up one claim on `page`; at the last its frame and its room are free.

        It waits for no turn under way, which may be one of this thread: then it is done when that ends.
        """
        self.release_all([page])

    def release_all(self, claims: list[int]) -> None:
        """Give up a claim on each of these pages, as `release`; what is left in the list was not given up yet."""
        if self._is_foreign():
            return
        while claims:
            self._released += (claims[-1],)
            del claims[-1]  # no call since, so no interrupt
        self._drop_released()

    # -- residency -----------------------------------------------------------------------------------------------------

    def pin(self, page: int) -> Tensor:
        """Return the frame of `page`, uint8 [page_nbytes], which stays where it is until it is unpinned.

        Raises:
            StateLostError: a page of this pager is lost, or the pager was closed.
            SpillError, CorruptPageError: the page could not be read; it stays where it was.
            BudgetError: every frame is pinned by this thread.
            MemoryError, RuntimeError: a frame could not be allocated.
        """
        done: list[bool] = []
        try:
            return self._pin(page, done)
        except BaseException:
            if done:  # an interrupt on the way out: nobody has the pin that could give it back
                self.unpin(page, dirty=False)
            raise

    @_turn
    def _pin(self, page: int, done: list[bool]) -> Tensor:
        residency = self._residency
        self._refuse_closed()
        residency.refuse_lost()
        entry = residency.table[page]
        residency.count_use(entry)
        while not residency.occupy(entry):
            self._await_unpin(page)
            residency.refuse_lost()
            entry = residency.table[page]  # another thread may have released it meanwhile
        residency.settle(entry)
        thread = threading.get_ident()
        entry.pins += 1  # no call between these: an interrupt comes before them all or after
        self._pins_of_thread[thread] += 1
        done += (True,)
        residency.replacement.pin(page)
        residency.notify("pin", entry)
        assert entry.frame is not None
        return entry.frame.buffer

    @_turn
    def unpin(self, page: int, *, dirty: bool, done: list[bool] | None = None) -> None:
        """Give back a pin; `dirty` says whether the frame was changed. In the thread that pinned it.

        `done` gets a True as soon as the pin is given back, for callers that may be interrupted before: a pin that is
        not given back lasts for ever.
        """
        done = [] if done is None else done
        residency = self._residency
        entry = residency.table[page]
        assert entry.pins, f"page {page} is unpinned more often than pinned"
        assert entry.frame is not None
        thread = threading.get_ident()
        entry.is_dirty |= dirty  # as in `_pin`
        entry.pins -= 1
        self._pins_of_thread[thread] -= 1
        done += (True,)
        if not self._pins_of_thread[thread]:
            del self._pins_of_thread[thread]
        residency.touch(entry.frame)
        residency.notify("unpin", entry)
        if entry.pins == 0:
            residency.retire(entry)
            self._unpinned.notify_all()

    def look_ahead(self, page: int) -> None:
        """Prefetch `page` and the `prefetch_depth` pages expected after it: what a sweep does before each page."""
        if self._residency.tier is not None:  # asked without the lock, as is right for a hint: else all are resident
            self._look_ahead(page)

    @_turn
    def _look_ahead(self, page: int) -> None:
        table = self._residency.table
        if page in table:
            self._residency.read_ahead([table[page], *table.following(table[page], self.prefetch_depth)])

    def prefetch(self, pages: Sequence[int]) -> None:
        """Start reading what a sweep over `pages` needs first, as far as there are frames: it changes only time."""
        if self._residency.tier is not None:
            self._prefetch(pages[: 1 + self.prefetch_depth])

    @_turn
    def _prefetch(self, pages: Sequence[int]) -> None:
        table = self._residency.table
        self._residency.read_ahead([table[page] for page in pages if page in table])

    @_turn
    def expect(self, pages: Iterable[int]) -> None:
        """These pages will be pinned in this order: what write-behind looks ahead on. A hint."""
        self._refuse_closed()
        self._residency.regrow()
        self._residency.table.line_up(pages)

    # -- steps ---------------------------------------------------------------------------------------------------------

    @_turn
    def begin_step(self, *, is_part: bool = False) -> None:
        """Learn how much memory frames may have now, where the budget is automatic; in a part of a step, not always."""
        if self._automatic is not None:
            self._automatic.begin_step(self._residency.frames.num_allocated * self.page_nbytes, is_part=is_part)

    @_turn
    def end_step(self) -> None:
        """Give back the frames that the rest of the program needs more than state does, until the next step.

        Warns where they cannot be given back, because what is in them has no other room.
        """
        if self._automatic is None:
            return
        residency = self._residency
        try:
            residency.trim(self._automatic.keep_nbytes // self.page_nbytes)
        except SpillError as error:
            warnings.warn(f"state stays on the device, which may run out of memory: {error}", stacklevel=3)
        self._automatic.end_step(residency.frames.num_allocated * self.page_nbytes)

    @_turn
    def flush(self) -> None:
        """Write every dirty page home, except pinned ones, and end all transfers.

        Raises:
            StateLostError: a page could not be written.
        """
        self._residency.flush()

    @_turn
    def fail(self, page: int, error: Exception) -> None:
        """`page` is half updated or gone: nothing is pinned here until it is released."""
        residency = self._residency
        residency.lose(residency.table[page], error)

    def close(self) -> None:
        """Drop every page, frame, file and thread. Nothing can be opened or pinned any more."""
        if not self._is_foreign():
            self._close()

    @_turn
    def _close(self) -> None:
        self._is_closed = True
        self._drop_all()

    def _drop_all(self) -> None:
        for entry in list(self._residency.table.values()):
            self._residency.drop(entry)
        self._residency.close_tier()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise StateLostError(
                "this pager is closed, and its pages are gone; make a new optimizer and load its state"
            )

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    @_turn
    def stats(self) -> PagingStats:
        """What was done so far."""
        return self._residency.counters.snapshot()

    @_turn
    def reset_stats(self) -> None:
        """Count from zero again."""
        self._residency.counters.reset()

    @property
    @_turn
    def memory(self) -> PagingMemory:
        """Where the pages are."""
        return self._residency.memory

    @_turn
    def memory_of(self, pages: Iterable[int]) -> PagingMemory:
        """Where some of the pages are: `frame_nbytes` are those of the frames that they are in."""
        return self._residency.memory_of(pages)

    @_turn
    def describe(self) -> str:
        """Return in words where pages go that have no frame."""
        tier = self._residency.tier
        return "every page has a frame" if tier is None else tier.describe()

    @_turn
    def observe(self, observer: Observer) -> None:
        """Tell `observer` where every page is, and from now on what happens to pages. Several may observe."""
        self._residency.observe(observer)

    @_turn
    def unobserve(self, observer: Observer) -> None:
        """Tell `observer` nothing more."""
        self._residency.unobserve(observer)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _put_right(self) -> None:
        """Mend what a turn left that was cut short."""
        mend(self._residency)
        if self._is_closed:
            self._drop_all()
        self._is_cut = False

    def _drop_released(self) -> None:
        """Do what `release` asked for, unless somebody has the turn: they do it when it ends.

        Looking again after the lock is given back misses nothing: what came meanwhile found it taken.
        """
        while self._released and not self._lock.locked():
            with self._lock:  # not `acquire(blocking=False)`: an interrupt could come between it and what gives it back
                self._drop_in_turn()

    def _drop_in_turn(self) -> None:
        try:
            if self._is_cut:
                self._put_right()
            table = self._residency.table
            while self._released:
                number = self._released[0]
                is_over = number in table and table.unclaim(table[number])
                del self._released[0]  # no call since the claim was given up, so no interrupt
                if is_over:
                    self._residency.drop(table[number])
            if not table.is_in_use:
                self._residency.close_tier()
        except BaseException:
            self._is_cut = True
            raise

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
