"""Which pages are in frames: the transitions that `paging.pager` draws, one function each.

Nothing here takes a lock or waits for another thread: `paging.device` calls it one turn at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy

from pagedopt.errors import BudgetError, PagedOptError, SpillError, StateLostError
from pagedopt.paging.config import too_small, working_set_of
from pagedopt.paging.events import Observer, PageEvent
from pagedopt.paging.frames import Frame, FramePool
from pagedopt.paging.replacement import Replacement
from pagedopt.paging.stats import Counters, PagingMemory
from pagedopt.paging.table import Page, PageState, PageTable
from pagedopt.ranges import profiled
from pagedopt.tiers.base import Span, Tier, TierUsage, Transfer
from pagedopt.tiers.staged import to_be_followed
from pagedopt.tiers.streams import Streams

_IN_FRAMES = (PageState.RESIDENT, PageState.LEAVING)


class Residency:
    """Pages, frames and the tier of one device.

    Args:
        page_nbytes: bytes of a page.
        prefetch_depth: pages read ahead, and as many written behind.
        frames: the frames, and with them the budget.
        open_tier: makes the home of pages that do not fit; called when the first page does not.
        budget_name: the argument to name where the budget is too small.
        streams: of the device that the frames are on.
    """

    def __init__(
        self,
        *,
        page_nbytes: int,
        prefetch_depth: int,
        frames: FramePool,
        open_tier: Callable[[], Tier],
        budget_name: str,
        streams: Streams,
    ) -> None:
        self.page_nbytes = page_nbytes
        self.prefetch_depth = prefetch_depth
        self.frames = frames
        self.table = PageTable()
        self.replacement = Replacement(prefetch_depth)
        self.counters = Counters()
        self._observers: tuple[Observer, ...] = ()
        self.tier: Tier | None = None
        self.leaving: dict[int, Page] = {}  # in the order in which they began to leave
        self.writing: dict[int, tuple[Page, Transfer]] = {}  # writes not yet known to have ended well
        self.lost: dict[int, Exception] = {}
        self._open_tier = open_tier
        self._budget_name = budget_name
        self._streams = streams

    @property
    def working_set(self) -> int:
        """Frames that a sweep needs at once."""
        return working_set_of(self.prefetch_depth)

    @property
    def memory(self) -> PagingMemory:
        """Where the pages are."""
        usage = TierUsage() if self.tier is None else self.tier.usage
        return PagingMemory(
            num_pages=len(self.table),
            num_resident=sum(page.state in _IN_FRAMES for page in self.table.values()),
            frame_nbytes=self.frames.num_allocated * self.page_nbytes,
            host_nbytes=usage.host_nbytes,
            disk_nbytes=usage.disk_nbytes,
            budget_nbytes=self.frames.budget_nbytes,
        )

    def memory_of(self, numbers: Iterable[int]) -> PagingMemory:
        """Where some of the pages are; the frames counted are those that they are in. One that is gone is nowhere."""
        pages = [self.table[number] for number in numbers if number in self.table]
        num_resident = sum(page.state in _IN_FRAMES for page in pages)
        homes = [] if self.tier is None else [self.tier.home(page.number) for page in pages]
        return PagingMemory(
            num_pages=len(pages),
            num_resident=num_resident,
            frame_nbytes=num_resident * self.page_nbytes,
            host_nbytes=homes.count("host") * self.page_nbytes,
            disk_nbytes=homes.count("disk") * self.page_nbytes,
            budget_nbytes=self.frames.budget_nbytes,
        )

    # -- space ---------------------------------------------------------------------------------------------------------

    def new_page(self) -> Page:
        """Add a page, with a frame of its own if the budget has one, else with room in the tier."""
        self.regrow()
        has_frame = self.frames.grow()
        try:
            if not has_frame and self.frames.num_charged < self.working_set:
                held = self.frames.num_charged * self.page_nbytes
                raise too_small(self._budget_name, held, self.page_nbytes, self.prefetch_depth)
            return self._reserved_page(must_spill=not has_frame)
        except (BudgetError, SpillError):
            if has_frame:
                self.frames.shrink()
            raise

    def _reserved_page(self, *, must_spill: bool) -> Page:
        """Add a page. Once one page has to leave at times, any may: from then on all of them have room in the tier."""
        page = self.table.new()
        if self.tier is None and must_spill:
            self.tier = self._reserve_all(page)
        elif self.tier is not None:
            self.tier.reserve(page.number, self.page_nbytes)
        self.table.add(page)
        return page

    def _reserve_all(self, *new: Page) -> Tier:
        tier = self._open_tier()
        try:
            for page in (*self.table.values(), *new):
                tier.reserve(page.number, self.page_nbytes)
        except BaseException:
            tier.close()
            raise
        return tier

    def drop(self, page: Page) -> None:
        """Forget a page and free all that it has; if somebody is in it, when they leave."""
        if page.pins:
            page.is_doomed = True
            return
        self._outlast(page)
        self._vacate(page)
        self.lost.pop(page.number, None)
        self.notify("gone", page)
        self.table.remove(page)
        if self.tier is not None:
            self.tier.release(page.number)
        if self.frames.num_charged > len(self.table):
            self.frames.shrink()

    def close_tier(self) -> None:
        """Give back the tier's memory, file and threads."""
        if self.tier is not None:
            self.tier.close()
            self.tier = None

    # -- into a frame --------------------------------------------------------------------------------------------------

    def occupy(self, page: Page) -> bool:
        """Give `page` a frame, if it has none, and begin to fill it; return False if every frame is pinned."""
        if page.frame is None:
            frame = self._free_frame() or self._taken_frame()
            if frame is None:
                return False
            self._fill(page, frame)
            page.is_hint = False
        return True

    def read_ahead(self, pages: Iterable[Page]) -> None:
        """Begin to read pages as far as there are frames that nobody needs: a hint, which never raises."""
        for page in pages:
            if page.state is not PageState.EVICTED or not page.is_stored or self.lost:
                continue
            try:
                frame = self._free_frame()
            except (MemoryError, RuntimeError):  # none can be allocated: the pin that needs one will say so
                return
            if frame is None:
                return
            self._fill(page, frame)
            page.is_hint = True
            self.counters.prefetches += 1
            self.notify("prefetch", page)

    def _free_frame(self) -> Frame | None:
        """Return a frame that is idle, or is left by the page that began to leave first."""
        self.collect()
        frame = self._new_frame()
        if frame is None and self.leaving:
            frame = self._evict(next(iter(self.leaving.values())))
        return frame

    def _new_frame(self) -> Frame | None:
        if not self.frames.num_available:
            self.regrow()
        frame = self.frames.take()
        if frame is not None and frame.stream is None:  # the allocator has it ready for the current stream
            frame.stream = self._streams.current()
        return frame

    def _taken_frame(self) -> Frame | None:
        """Return a frame taken from a page that would rather stay, None if all are pinned."""
        self._begin_leaving()
        return self._free_frame()

    def _fill(self, page: Page, frame: Frame) -> None:
        page.frame, page.state = frame, PageState.READING
        pending, frame.pending = frame.pending, None
        self.replacement.expect(page.number)
        if not page.is_stored:
            page.transfer = None if pending is None else to_be_followed(pending)  # then it is filled with zeros
            return
        assert self.tier is not None
        after = self._users(frame) if pending is None else (pending,)  # which followed the users before it
        with profiled("read"):
            page.transfer = self.tier.read(page.number, frame.buffer, after=after)
        self.counters.bytes_read[self.tier.home(page.number)] += self.page_nbytes
        self.notify("read", page)

    def settle(self, page: Page) -> None:
        """Make the frame of `page` its user's: nothing reads or writes it any more.

        Raises:
            SpillError: it could not be read.
            StateLostError: a write failed.
        """
        if page.state is PageState.READING:
            self._settle_read(page)
            return
        if page.state is PageState.LEAVING:
            del self.leaving[page.number]
            page.state = PageState.RESIDENT
            self.replacement.unpin(page.number)
        if page.transfer is not None:
            self.end_write(page.number)
            self.refuse_lost()
        assert page.frame is not None
        self.touch(page.frame)

    def _settle_read(self, page: Page) -> None:
        try:
            self._end_read(page)
        except SpillError:
            self.collect()
            self.refuse_lost()  # then the read failed because the write that it followed did
            if not page.is_hint:
                raise
            self.occupy(page)  # a hint makes no pin fail: read again, now in earnest
            self._end_read(page)

    def _end_read(self, page: Page) -> None:
        assert page.frame is not None
        try:
            self._wait(page, page.transfer)
        except SpillError:
            self.notify("drop", page)
            self.frames.give(page.frame)
            self.replacement.forget(page.number)
            page.frame, page.transfer, page.state = None, None, PageState.EVICTED
            raise
        self.touch(page.frame)
        if page.is_stored:
            self.notify("filled", page, moving=page.transfer)
        elif not page.frame.is_zero:
            page.frame.buffer.zero_()
        page.frame.is_zero = False  # whoever pins it may write
        page.transfer, page.state = None, PageState.RESIDENT

    # -- streams -------------------------------------------------------------------------------------------------------

    def touch(self, frame: Frame) -> None:
        """Let what the current stream is given next come after all that was done with the frame."""
        current = self._streams.current()
        if frame.stream == current:  # not `!=`: torch answers False to that where one of the two is None
            return
        if frame.stream is not None:
            self._streams.hand_over(frame.buffer, frame.stream)
        frame.stream = current

    def _users(self, frame: Frame) -> tuple[Transfer, ...]:
        """Return what a transfer must follow to have the frame for itself."""
        mark = self._streams.mark(frame.stream)
        return () if mark is None else (mark,)

    # -- out of a frame ------------------------------------------------------------------------------------------------

    def retire(self, page: Page) -> None:
        """The last user of `page` is done with it."""
        if page.is_doomed:
            self.drop(page)
        elif page.state is PageState.LOST:
            self._vacate(page)
        else:
            self.replacement.unpin(page.number)
            self._write_behind(page)

    def _write_behind(self, page: Page) -> None:
        """Let a page leave now if the pages expected next need more frames than are free or being left."""
        if self.tier is None or self.lost:
            return
        coming = self.table.following(page, 2 * self.prefetch_depth)
        need = sum(next_page.frame is None or next_page.state is PageState.LEAVING for next_page in coming)
        if need > self.frames.num_available + len(self.leaving):
            victim = self.replacement.victim(len(self.table))
            if victim is not None:
                self._leave(self.table[victim])

    def regrow(self) -> None:
        """Charge again the frames that pages could use: the budget may have room that it had not when they came."""
        while self.frames.num_charged < len(self.table) and self.frames.grow():
            continue

    def trim(self, num_frames: int) -> None:
        """Give frames back until there are at most `num_frames`, but for those that are pinned.

        Raises:
            SpillError: the pages have no other home, and there is no room for them; they stay.
        """
        if self.frames.num_charged <= num_frames or self.lost:
            return
        if self.tier is None:
            self.tier = self._reserve_all()
        while self.frames.num_charged > num_frames:
            if not self.frames.num_available and not self.leaving:
                self._begin_leaving()
            if not self.frames.num_available:
                if not self.leaving:
                    return
                self.frames.give(self._evict(next(iter(self.leaving.values()))))
            self.frames.shrink()

    def _begin_leaving(self) -> None:
        """Let the page leave that is needed last, if one can."""
        victim = self.replacement.victim(len(self.table))
        if victim is None:
            victim = self.replacement.last_resort()
        if victim is not None:
            self._leave(self.table[victim])

    def _leave(self, page: Page) -> None:
        if page.state is PageState.READING:
            self._outlast(page)
        if page.state is PageState.RESIDENT:
            if page.is_dirty:
                self._write(page)
            page.state = PageState.LEAVING
            self.leaving[page.number] = page
            self.replacement.forget(page.number)

    def _evict(self, page: Page) -> Frame:
        """Take the frame of a leaving page; whoever uses it follows the page's write."""
        assert page.frame is not None
        del self.leaving[page.number]
        frame, frame.pending = page.frame, page.transfer
        page.frame, page.transfer, page.state = None, None, PageState.EVICTED
        self.counters.evictions += 1
        self.notify("evict", page)
        return frame

    # -- home ----------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write every dirty page that is not pinned, a few at a time, and end all transfers."""
        for page in list(self.table.values()):
            if self.tier is not None and page.is_dirty and page.pins == 0:
                self._write(page)
            while len(self.writing) > self.prefetch_depth:
                self.end_write(next(iter(self.writing)))
        for page in list(self.table.values()):
            self._outlast(page)
        self.refuse_lost()

    def _write(self, page: Page) -> None:
        assert self.tier is not None
        assert page.frame is not None
        if page.number in self.writing:  # ended long ago, as the page was read since
            self.end_write(page.number)
        with profiled("write"):
            transfer = self.tier.write(page.number, page.frame.buffer, after=self._users(page.frame))
        self.writing[page.number] = page, transfer  # before it counts as clean: an interrupt may come in between
        page.transfer = transfer
        page.is_dirty, page.is_stored = False, True
        self.counters.bytes_written[self.tier.home(page.number)] += self.page_nbytes
        self.notify("write", page)

    def collect(self) -> None:
        """Learn which writes ended, and which pages were lost with them."""
        for number in [number for number, (_, transfer) in self.writing.items() if transfer.done()]:
            self.end_write(number)

    def end_write(self, number: int) -> None:
        """Wait for a write and learn how it ended; nothing of it is forgotten if that is interrupted."""
        page, transfer = self.writing[number]
        failure: SpillError | None = None
        try:
            self._wait(page, transfer)
            self.notify("saved", page, moving=transfer)
        except SpillError as error:
            failure = error
            self.lost[number] = _without_traceback(error)
        del self.writing[number]
        if page.transfer is transfer:
            page.transfer = None
            if page.frame is not None:
                self.touch(page.frame)
        if failure is not None:
            self.lose(page, failure)

    def _outlast(self, page: Page) -> None:
        """Wait for whatever is under way with `page`, however it ends."""
        if page.number in self.writing:
            self.end_write(page.number)
        if page.state is PageState.READING:
            try:
                self._end_read(page)
            except SpillError:  # nobody asked for this page: it stays where it was
                return

    # -- lost ----------------------------------------------------------------------------------------------------------

    def lose(self, page: Page, error: Exception) -> None:
        """The bytes of `page` are gone or half updated: nothing is pinned until it is dropped."""
        self.lost[page.number] = _without_traceback(error)
        self._outlast(page)
        page.state, page.is_dirty = PageState.LOST, False
        self._vacate(page)

    def _vacate(self, page: Page) -> None:
        """Give the frame of a lost or dropped page back, unless somebody is still in it."""
        self.leaving.pop(page.number, None)
        self.replacement.forget(page.number)
        if page.frame is not None and page.pins == 0:
            self.notify("drop", page)
            self.frames.give(page.frame)
            page.frame = page.transfer = None

    def refuse_lost(self) -> None:
        """Raise `StateLostError` while a page is lost."""
        if self.lost:
            number, error = next(iter(self.lost.items()))
            raise StateLostError(
                f"page {number} of the optimizer's state is lost ({error}); "
                "load a state dict or checkpoint, or clear the optimizer's state, before the next step"
            ) from error

    # -- what is told --------------------------------------------------------------------------------------------------

    def count_use(self, page: Page) -> None:
        """`page` is about to be pinned."""
        if page.frame is None:
            self.counters.faults += 1
            self.notify("fault", page)
        else:
            self.counters.hits += 1
            self.notify("hit", page)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` where every page is, and from now on what happens to pages."""
        for page in self.table.values():
            observer(self._event("away" if page.frame is None else "resident", page))
        if not self._observers:
            self._streams.take_times(True)
        self._observers = (*self._observers, observer)

    def unobserve(self, observer: Observer) -> None:
        """Tell `observer` nothing more."""
        if observer in self._observers:
            self._observers = tuple(other for other in self._observers if other != observer)
            if not self._observers:
                self._streams.take_times(False)

    def notify(self, name: str, page: Page, span: Span | None = None, moving: Transfer | None = None) -> None:
        """Tell every observer; where there are none nothing is made."""
        if self._observers:
            event = self._event(name, page, span, moving)
            for observer in self._observers:
                observer(event)

    def _event(self, name: str, page: Page, span: Span | None = None, moving: Transfer | None = None) -> PageEvent:
        home = None if self.tier is None else self.tier.home(page.number)
        if moving is not None and moving.done():
            span, moving = moving.span(), None
        return PageEvent(name, page.number, home, span, moving)

    def _wait(self, page: Page, transfer: Transfer | None) -> None:
        if transfer is None:
            return
        if transfer.done():
            transfer.wait()
            return
        with self.stalled(page.number):
            transfer.wait()

    @contextmanager
    def stalled(self, number: int) -> Iterator[None]:
        """Count and time what is waited for on behalf of a page, which may be gone when it is over."""
        start = time.perf_counter()
        try:
            with profiled("wait"):
                yield
        finally:
            stop = time.perf_counter()
            self.counters.stalls += 1
            self.counters.stalled_seconds += stop - start
            if number in self.table:
                self.notify("wait", self.table[number], Span(threading.current_thread().name, start, stop))


def _without_traceback(error: Exception) -> Exception:
    """Return a copy of `error` that keeps no frames, and so no optimizer, alive."""
    try:
        return copy(error)
    except TypeError:  # an exception whose constructor takes something else than its args
        return PagedOptError(f"{type(error).__name__}: {error}")
