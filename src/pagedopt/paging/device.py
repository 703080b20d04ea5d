"""The mechanism: which pages of one device are in frames, and what moves when. `paging.pager` writes it down."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy

from torch import Tensor

from pagedopt.errors import BudgetError, PagedOptError, SpillError, StateLostError
from pagedopt.paging.config import too_small
from pagedopt.paging.frames import Frame, FramePool
from pagedopt.paging.replacement import Replacement
from pagedopt.paging.stats import Counters, PagingMemory, PagingStats
from pagedopt.paging.table import Page, PageState, PageTable
from pagedopt.tiers.base import Tier, TierUsage, Transfer

Observer = Callable[[str, int], None]
"""Told `read, pin, hit, fault, unpin, write, evict` or `prefetch`, and the page. It must not call the pager."""


_IN_FRAMES = (PageState.RESIDENT, PageState.LEAVING)


class DevicePager:
    """The pages of one device. Thread-safe: every method is one turn under one lock.

    Args:
        page_nbytes: bytes of a page.
        prefetch_depth: pages read ahead, and as many written behind.
        frames: the frames, and with them the budget.
        open_tier: makes the home of pages that do not fit; called when the first page does not.
        budget_name: the argument to name where the budget is too small.
    """

    def __init__(
        self,
        *,
        page_nbytes: int,
        prefetch_depth: int,
        frames: FramePool,
        open_tier: Callable[[], Tier],
        budget_name: str,
    ) -> None:
        self.page_nbytes = page_nbytes
        self.prefetch_depth = prefetch_depth
        self._frames = frames
        self._open_tier = open_tier
        self._budget_name = budget_name
        self._table = PageTable()
        self._replacement = Replacement(prefetch_depth)
        self._tier: Tier | None = None
        self._leaving: dict[int, Page] = {}  # in the order in which they began to leave
        self._writing: dict[int, tuple[Page, Transfer]] = {}  # writes not yet known to have ended well
        self._lost: dict[int, Exception] = {}
        self._counters = Counters()
        self._observer: Observer | None = None
        self._lock = threading.Lock()
        self._unpinned = threading.Condition(self._lock)
        self._pins_of_thread: dict[int, int] = {}
        self._released: deque[int] = deque()
        self._pid = os.getpid()
        self._is_closed = False

    # -- space ---------------------------------------------------------------------------------------------------------

    def open_page(self) -> tuple[int, int]:
        """Return the page being filled and how many of its bytes are used; a new page if none is open.

        Raises:
            BudgetError: the budget has no room for the working set.
            SpillError: the page does not fit into frames, and its tier has no room for it.
        """
        with self._turn():
            page = self._table.open
            if page is None:
                page = self._new_page()
            return page.number, page.used

    def claim(self, page: int, end: int) -> None:
        """Use `page` up to byte `end`; it lives until it is released as often as it was claimed."""
        with self._turn():
            assert 0 <= end <= self.page_nbytes, f"byte {end} is not in a page"
            self._table.claim(self._table[page], end)

    def close_page(self) -> None:
        """Fill the open page no further: the next `open_page` is a new one."""
        with self._turn():
            page, self._table.open = self._table.open, None
            if page is not None and not page.claims:
                self._drop(page)

    def release(self, page: int) -> None:
        """Give up one claim on `page`; at the last its frame and its room are free. Never blocks on another turn.

        A finalizer may call it in the middle of a turn of its own thread: it is then done when that turn ends.
        """
        if self._is_foreign():
            return
        self._released.append(page)
        self._release_pending()

    # -- residency -----------------------------------------------------------------------------------------------------

    def pin(self, page: int) -> Tensor:
        """Return the frame of `page`, uint8 [page_nbytes], which stays where it is until it is unpinned.

        Raises:
            StateLostError: a page of this pager is lost.
            SpillError, CorruptPageError: the page could not be read; it stays where it was.
            BudgetError: every frame is pinned by this thread.
        """
        with self._turn():
            self._refuse_lost()
            entry = self._table[page]
            self._count_use(entry)
            is_read_here = self._occupy(entry)
            self._settle(entry, may_retry=not is_read_here)
            entry.pins += 1
            self._replacement.pin(page)
            self._count_pin(+1)
            self._notify("pin", entry)
            assert entry.frame is not None
            return entry.frame.buffer

    def unpin(self, page: int, *, dirty: bool) -> None:
        """Give back a pin; `dirty` says whether the frame was changed. In the thread that pinned it."""
        with self._turn():
            entry = self._table[page]
            assert entry.pins, f"page {page} is unpinned more often than pinned"
            entry.pins -= 1
            entry.is_dirty |= dirty
            self._count_pin(-1)
            self._notify("unpin", entry)
            if entry.pins == 0:
                self._retire(entry)
                self._unpinned.notify_all()

    def prefetch(self, page: int) -> None:
        """Start reading `page` if there is a frame for it: a hint, which changes nothing but time."""
        if self._tier is not None:  # asked without the lock, as is right for a hint: else everything is resident
            with self._turn():
                if page in self._table:
                    self._read_ahead([self._table[page]])

    def look_ahead(self, page: int) -> None:
        """Prefetch `page` and the `prefetch_depth` pages expected after it: what a sweep does before each page."""
        if self._tier is not None:
            with self._turn():
                if page in self._table:
                    entry = self._table[page]
                    self._read_ahead([entry, *self._table.following(entry, self.prefetch_depth)])

    def expect(self, pages: Iterable[int]) -> None:
        """These pages will be pinned in this order: what write-behind looks ahead on. A hint."""
        with self._turn():
            self._table.line_up(pages)

    def flush(self) -> None:
        """Write every dirty page home, except pinned ones, and end all transfers.

        Raises:
            StateLostError: a page could not be written.
        """
        with self._turn():
            if self._tier is not None:
                for entry in list(self._table.values()):
                    if entry.is_dirty and entry.pins == 0:
                        self._write(entry)
                    while len(self._writing) > self.prefetch_depth:
                        self._end_write(next(iter(self._writing)))
                for entry in list(self._table.values()):
                    if entry.state is PageState.READING:
                        self._outlast(entry)
            while self._writing:
                self._end_write(next(iter(self._writing)))
            self._refuse_lost()

    def fail(self, page: int, error: Exception) -> None:
        """`page` is half updated or gone: nothing is pinned here until it is released."""
        with self._turn():
            self._lose(self._table[page], error)

    def close(self) -> None:
        """Drop every page, frame, file and thread. Nothing can be opened or pinned any more."""
        if self._is_foreign():
            return
        with self._turn():
            self._is_closed = True
            for entry in list(self._table.values()):
                self._drop(entry)
            if self._tier is not None:
                self._tier.close()
                self._tier = None

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> PagingStats:
        """What was done so far."""
        with self._turn():
            return self._counters.snapshot()

    def reset_stats(self) -> None:
        """Count from zero again."""
        with self._turn():
            self._counters.reset()

    @property
    def memory(self) -> PagingMemory:
        """Where the pages are."""
        with self._turn():
            usage = TierUsage() if self._tier is None else self._tier.usage
            return PagingMemory(
                num_pages=len(self._table),
                num_resident=sum(entry.state in _IN_FRAMES for entry in self._table.values()),
                frame_nbytes=self._frames.num_allocated * self.page_nbytes,
                host_nbytes=usage.host_nbytes,
                disk_nbytes=usage.disk_nbytes,
                budget_nbytes=self._frames.budget_nbytes,
            )

    def memory_of(self, pages: Iterable[int]) -> PagingMemory:
        """Return where some of the pages are: `frame_nbytes` are those of the frames that they are in."""
        with self._turn():
            entries = [self._table[page] for page in pages]
            resident = sum(entry.state in _IN_FRAMES for entry in entries)
            homes = [] if self._tier is None else [self._tier.home(entry.number) for entry in entries]
            return PagingMemory(
                num_pages=len(entries),
                num_resident=resident,
                frame_nbytes=resident * self.page_nbytes,
                host_nbytes=homes.count("host") * self.page_nbytes,
                disk_nbytes=homes.count("disk") * self.page_nbytes,
                budget_nbytes=self._frames.budget_nbytes,
            )

    def describe(self) -> str:
        """Return in words where pages go that have no frame."""
        with self._turn():
            return "every page has a frame" if self._tier is None else self._tier.describe()

    @property
    def working_set(self) -> int:
        """Frames that a sweep needs at once."""
        return 1 + 2 * self.prefetch_depth

    def observe(self, callback: Observer | None) -> None:
        """Tell `callback` what happens to pages; None: tell nobody."""
        with self._turn():
            self._observer = callback

    # -- turns ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._is_foreign():
            self._adopt()
        with self._lock:
            try:
                yield
            finally:
                self._drop_released()
        self._release_pending()

    def _is_foreign(self) -> bool:
        return self._pid != os.getpid()

    def _adopt(self) -> None:
        """In a forked child: frames are copies and serve, but the file and its threads are the parent's."""
        if self._tier is not None:
            raise RuntimeError(
                "this optimizer's state is paged by the parent process; make a new optimizer in the forked child "
                "and load its state dict"
            )
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._unpinned = threading.Condition(self._lock)
        self._pid = os.getpid()

    def _release_pending(self) -> None:
        """Do what `release` left to whoever has the turn; look again after it, as more may have come meanwhile."""
        while self._released and self._lock.acquire(blocking=False):
            try:
                self._drop_released()
            finally:
                self._lock.release()

    def _drop_released(self) -> None:
        while self._released:
            number = self._released.popleft()
            if number in self._table and self._table.unclaim(self._table[number]):
                self._drop(self._table[number])
        if self._table.num_claimed == 0 and self._tier is not None:
            self._tier.close()
            self._tier = None

    def _await_unpin(self) -> None:
        """Let other threads have turns until one unpins.

        Only threads that hold no pin wait here, so those that hold one always get on.
        """
        if self._pins_of_thread.get(threading.get_ident()):
            raise BudgetError(
                f"all {self._frames.num_charged} frames are pinned; "
                f"raise {self._budget_name} or unpin pages before pinning more"
            )
        self._unpinned.wait()

    def _count_pin(self, change: int) -> None:
        thread = threading.get_ident()
        pins = self._pins_of_thread.pop(thread, 0) + change
        if pins > 0:
            self._pins_of_thread[thread] = pins

    # -- transitions ---------------------------------------------------------------------------------------------------

    def _new_page(self) -> Page:
        if self._is_closed:
            raise RuntimeError("this pager is closed; pass another pager or make a new optimizer")
        has_frame = self._frames.grow()
        try:
            if not has_frame and self._frames.num_charged < self.working_set:
                held = self._frames.num_charged * self.page_nbytes
                raise too_small(self._budget_name, held, self.page_nbytes, self.prefetch_depth)
            return self._reserved_page(must_spill=not has_frame)
        except (BudgetError, SpillError):
            if has_frame:
                self._frames.shrink()
            raise

    def _reserved_page(self, *, must_spill: bool) -> Page:
        """Add a page. Once one page has to leave at times, any may: from then on all of them have room in the tier."""
        page = self._table.add()
        try:
            if self._tier is not None:
                self._tier.reserve(page.number, self.page_nbytes)
            elif must_spill:
                self._tier = self._reserve_all()
        except SpillError:
            self._table.remove(page)
            raise
        return page

    def _reserve_all(self) -> Tier:
        tier = self._open_tier()
        try:
            for entry in self._table.values():
                tier.reserve(entry.number, self.page_nbytes)
        except SpillError:
            tier.close()
            raise
        return tier

    def _occupy(self, entry: Page) -> bool:
        """Give `entry` a frame and begin to fill it; return False if it has one."""
        if entry.frame is not None:
            return False
        frame = self._free_frame() or self._taken_frame()
        while frame is None:
            self._await_unpin()
            self._refuse_lost()
            if self._table[entry.number].frame is not None:  # another thread brought it meanwhile
                return False
            frame = self._free_frame() or self._taken_frame()
        self._fill(entry, frame)
        return True

    def _free_frame(self) -> Frame | None:
        """Return a frame that is idle, or is left by the page that began to leave first."""
        self._collect()
        frame = self._frames.take()
        if frame is None and self._leaving:
            frame = self._evict(next(iter(self._leaving.values())))
        return frame

    def _taken_frame(self) -> Frame | None:
        """Return a frame taken from a page that would rather stay, None if all are pinned."""
        victim = self._replacement.victim(len(self._table))
        if victim is None:
            victim = self._replacement.last_resort()
        if victim is None:
            return None
        self._leave(self._table[victim])
        return self._free_frame()

    def _read_ahead(self, entries: list[Page]) -> None:
        self._collect()
        for entry in entries:
            if entry.state is not PageState.EVICTED or not entry.is_stored or self._lost:
                continue
            try:
                frame = self._free_frame()
            except (MemoryError, RuntimeError):  # none can be allocated: the pin that needs one will say so
                return
            if frame is None:
                return
            self._fill(entry, frame)
            self._replacement.expect(entry.number)
            self._counters.prefetches += 1
            self._notify("prefetch", entry)

    def _fill(self, entry: Page, frame: Frame) -> None:
        entry.frame, entry.state = frame, PageState.READING
        pending, frame.pending = frame.pending, None
        if not entry.is_stored:
            entry.transfer = pending  # then it is filled with zeros
            return
        assert self._tier is not None
        after = () if pending is None else (pending,)
        entry.transfer = self._tier.read(entry.number, frame.buffer, after=after)
        self._counters.bytes_read[self._tier.home(entry.number)] += self.page_nbytes
        self._notify("read", entry)

    def _settle(self, entry: Page, *, may_retry: bool) -> None:
        """Make the frame of `entry` its user's: nothing reads or writes it any more."""
        if entry.state is PageState.LEAVING:
            del self._leaving[entry.number]
            entry.state = PageState.RESIDENT
        if entry.state is PageState.RESIDENT:
            if entry.transfer is not None:
                self._end_write(entry.number)
                self._refuse_lost()
            return
        try:
            self._end_read(entry)
        except SpillError:
            self._collect()
            self._refuse_lost()  # then the read failed because the write that it followed did
            if not may_retry:
                raise
            self._occupy(entry)  # what failed was a hint
            self._end_read(entry)

    def _end_read(self, entry: Page) -> None:
        assert entry.frame is not None
        try:
            self._wait(entry.transfer)
        except SpillError:
            self._frames.give(entry.frame)
            self._replacement.forget(entry.number)
            entry.frame, entry.transfer, entry.state = None, None, PageState.EVICTED
            raise
        if not entry.is_stored:
            entry.frame.buffer.zero_()
        entry.transfer, entry.state = None, PageState.RESIDENT

    def _retire(self, entry: Page) -> None:
        """The last user of `entry` is done with it."""
        if entry.is_doomed:
            self._drop(entry)
        elif entry.state is PageState.LOST:
            self._vacate(entry)
        else:
            self._replacement.unpin(entry.number)
            self._write_behind(entry)

    def _write_behind(self, entry: Page) -> None:
        """Let a page leave now if the pages expected next need more frames than are free or being left."""
        if self._tier is None or self._lost:
            return
        coming = self._table.following(entry, 2 * self.prefetch_depth)
        need = sum(page.frame is None or page.state is PageState.LEAVING for page in coming)
        if need > self._frames.num_available + len(self._leaving):
            victim = self._replacement.victim(len(self._table))
            if victim is not None:
                self._leave(self._table[victim])

    def _leave(self, entry: Page) -> None:
        if entry.state is PageState.READING:
            self._outlast(entry)
        if entry.state is PageState.RESIDENT:
            if entry.is_dirty:
                self._write(entry)
            entry.state = PageState.LEAVING
            self._leaving[entry.number] = entry
            self._replacement.forget(entry.number)

    def _write(self, entry: Page) -> None:
        assert self._tier is not None
        assert entry.frame is not None
        if entry.number in self._writing:  # ended long ago, as the page was read since
            self._end_write(entry.number)
        transfer = self._tier.write(entry.number, entry.frame.buffer)
        self._writing[entry.number] = entry, transfer  # before it counts as clean: an interrupt may come in between
        entry.transfer = transfer
        entry.is_dirty, entry.is_stored = False, True
        self._counters.bytes_written[self._tier.home(entry.number)] += self.page_nbytes
        self._notify("write", entry)

    def _collect(self) -> None:
        """Learn which writes ended, and which pages were lost with them."""
        for number in [number for number, (_, transfer) in self._writing.items() if transfer.done()]:
            self._end_write(number)

    def _end_write(self, number: int) -> None:
        entry, transfer = self._writing[number]
        failure: SpillError | None = None
        try:
            self._wait(transfer)
        except SpillError as error:
            failure = error
        del self._writing[number]  # not before the wait, which an interrupt may end
        if entry.transfer is transfer:
            entry.transfer = None
        if failure is not None:
            self._lose(entry, failure)

    def _evict(self, entry: Page) -> Frame:
        """Take the frame of a leaving page; whoever uses it follows the page's write."""
        assert entry.frame is not None
        del self._leaving[entry.number]
        frame, frame.pending = entry.frame, entry.transfer
        entry.frame, entry.transfer, entry.state = None, None, PageState.EVICTED
        self._counters.evictions += 1
        self._notify("evict", entry)
        return frame

    def _outlast(self, entry: Page) -> None:
        """Wait for whatever is under way with `entry`, however it ends."""
        if entry.number in self._writing:
            self._end_write(entry.number)
        if entry.state is PageState.READING:
            try:
                self._end_read(entry)
            except SpillError:  # nobody asked for this page: it stays where it was
                return

    def _lose(self, entry: Page, error: Exception) -> None:
        self._lost[entry.number] = _without_traceback(error)
        self._outlast(entry)
        entry.state, entry.is_dirty = PageState.LOST, False
        self._vacate(entry)

    def _vacate(self, entry: Page) -> None:
        """Give the frame of a lost or dropped page back, unless somebody is still in it."""
        self._leaving.pop(entry.number, None)
        self._replacement.forget(entry.number)
        if entry.frame is not None and entry.pins == 0:
            self._frames.give(entry.frame)
            entry.frame = entry.transfer = None

    def _drop(self, entry: Page) -> None:
        """Forget a page and free all that it has."""
        if entry.pins:
            entry.is_doomed = True
            return
        self._outlast(entry)
        self._vacate(entry)
        self._lost.pop(entry.number, None)
        if self._tier is not None:
            self._tier.release(entry.number)
        self._table.remove(entry)
        if self._frames.num_charged > len(self._table):
            self._frames.shrink()

    def _refuse_lost(self) -> None:
        if self._lost:
            number, error = next(iter(self._lost.items()))
            raise StateLostError(
                f"page {number} of the optimizer's state is lost ({error}); "
                "load a state dict or checkpoint, or clear the optimizer's state, before the next step"
            ) from error

    def _wait(self, transfer: Transfer | None) -> None:
        if transfer is None:
            return
        if transfer.done():
            transfer.wait()
            return
        start = time.perf_counter()
        try:
            transfer.wait()
        finally:
            self._counters.stalled_seconds += time.perf_counter() - start

    def _count_use(self, entry: Page) -> None:
        if entry.frame is None:
            self._counters.faults += 1
            self._notify("fault", entry)
        else:
            self._counters.hits += 1
            self._notify("hit", entry)

    def _notify(self, event: str, entry: Page) -> None:
        if self._observer is not None:
            self._observer(event, entry.number)


def _without_traceback(error: Exception) -> Exception:
    """Return a copy of `error` that keeps no frames, and so no optimizer, alive."""
    try:
        return copy(error)
    except TypeError:  # an exception whose constructor takes something else than its args
        return PagedOptError(f"{type(error).__name__}: {error}")
