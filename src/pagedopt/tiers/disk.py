"""Pages in a spill file: the last home, moved by a few I/O threads, with a checksum for every page.

write   checksum, store          read    fill, checksum, compare

a page      one slot of the file; slots of released pages are used again, lowest first, so that pages laid out
            in order are read in order
order       a transfer waits in its I/O thread for the ones it follows. Threads take transfers in the order they
            were started, and each follows only earlier ones, so the oldest can always run

staging     a tensor that the file cannot move itself, being badly aligned, goes through a buffer in RAM, copied in the
            caller's thread, at `write` and at `wait`. There are as many buffers as transfers under way. Tensors on an
            accelerator are for `tiers.staged`
"""

from __future__ import annotations

import heapq
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash
from torch import Tensor

from pagedopt.errors import CorruptPageError, SpillError
from pagedopt.ranges import profiled
from pagedopt.tiers.base import EndedTransfer, Home, Span, TierUsage, Transfer
from pagedopt.tiers.buffers import DIRECT_ALIGNMENT, bytes_of, is_aligned, new_host_buffer
from pagedopt.tiers.spill_file import SpillFile
from pagedopt.units import format_bytes

NUM_THREADS = 8
"""Four transfers keep a fast disk busy; as many more threads hold reads that wait for the write before them."""

MAX_EXTENT_NBYTES = 256 << 20
"""Room is taken in extents that double up to this: few of them, so that pages lie in one piece."""


def extent_nbytes(file_nbytes: int, page_nbytes: int) -> int:
    """Return by how much a spill file of `file_nbytes` grows when the next page of `page_nbytes` needs room."""
    return max(min(file_nbytes, MAX_EXTENT_NBYTES) // page_nbytes, 1) * page_nbytes


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one page in the file; `checksum` is None while it holds no whole page."""

    page: int
    offset: int
    nbytes: int
    checksum: int | None = None
    last: Transfer | None = None


class DiskTier:
    """A `Tier` in one spill file, which is opened at the first `reserve` and gone at `close`.

    Args:
        page_nbytes: bytes of every page.
        folder: where the file lies; None: the system's temporary folder.
    """

    def __init__(self, page_nbytes: int, folder: Path | None = None) -> None:
        self._page_nbytes = page_nbytes
        self._folder = folder
        self._file: SpillFile | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._shut_down: weakref.finalize[[ThreadPoolExecutor, SpillFile, int], DiskTier] | None = None
        self._slots: dict[int, Slot] = {}
        self._staging = _Staging()
        self._free: list[int] = []  # heap of offsets
        self._end = 0  # offsets from here on were never used

    @property
    def usage(self) -> TierUsage:
        return TierUsage(disk_nbytes=len(self._slots) * self._page_nbytes)

    @property
    def file_nbytes(self) -> int:
        """Bytes taken on the disk, free slots included."""
        return 0 if self._file is None else self._file.nbytes

    def home(self, page: int) -> Home:
        assert page in self._slots
        return "disk"

    def describe(self) -> str:
        """Return in words how the file is moved, and what is missing."""
        if self._file is None:
            return "no spill file is open"
        cache = "past the page cache" if self._file.is_direct else "through the page cache (uses RAM beyond the budget)"
        name = "" if self._file.is_nameless else ", with a name that a killed process would leave behind"
        return f"{format_bytes(self._file.nbytes)} spill file in {self._file.folder}, moved {cache}{name}"

    def reserve(self, page: int, nbytes: int) -> None:
        assert page not in self._slots
        assert nbytes <= self._page_nbytes
        self._slots[page] = Slot(page, self._new_offset(), nbytes)

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        slot, file = self._slots[page], self._opened()
        if _can_move(file, into):
            return self._start(slot, partial(read_page, file, slot, into), after)
        try:
            staging = self._staging.take(slot.nbytes)
        except MemoryError as error:
            return EndedTransfer(SpillError(f"could not stage page {page}: {error}"))
        return _StagedRead(
            self._start(slot, partial(read_page, file, slot, staging), after), staging, into, self._staging
        )

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        slot, file = self._slots[page], self._opened()
        if _can_move(file, source):
            return self._start(slot, partial(write_page, file, slot, source), after)
        try:
            staging = self._staging.take(slot.nbytes)
            staging.copy_(source)
        except (MemoryError, RuntimeError) as error:  # no memory, or the device refused the copy
            return EndedTransfer(SpillError(f"could not stage page {page}: {error}"))
        return self._start(slot, partial(_write_staged, file, slot, staging, self._staging), after)

    def release(self, page: int) -> None:
        heapq.heappush(self._free, self._slots.pop(page).offset)

    def finish(self) -> None:
        if self._threads is not None and self._file is not None:
            self._threads.shutdown(wait=True)  # all that was handed to them, known here or not
            self._start_threads(self._file)
            self._staging = _Staging()

    def close(self) -> None:
        if self._shut_down is not None:
            self._shut_down()
        self._file = self._threads = self._shut_down = None
        self._staging = _Staging()
        self._slots.clear()
        self._free.clear()
        self._end = 0

    def _opened(self) -> SpillFile:
        if self._file is None:
            self._file = SpillFile(self._folder, direct=self._page_nbytes % DIRECT_ALIGNMENT == 0)
        if self._threads is None:
            self._start_threads(self._file)
        return self._file

    def _start_threads(self, file: SpillFile) -> None:
        threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="pagedopt-io")
        before, self._shut_down = self._shut_down, weakref.finalize(self, _shut_down, threads, file, os.getpid())
        self._threads = threads
        if before is not None:
            before.detach()

    def _new_offset(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        file = self._opened()
        if self._end + self._page_nbytes > file.nbytes:
            self._extend(file)
        self._end += self._page_nbytes
        return self._end - self._page_nbytes

    def _extend(self, file: SpillFile) -> None:
        extent = extent_nbytes(file.nbytes, self._page_nbytes)
        if extent > self._page_nbytes:
            try:
                file.extend(extent)
            except SpillError:  # less than that is left: a page at a time is all that is needed
                file.extend(self._page_nbytes)
        else:
            file.extend(self._page_nbytes)

    def _start(self, slot: Slot, move: Callable[[], None], after: Sequence[Transfer]) -> Transfer:
        assert self._threads is not None
        try:
            future = self._threads.submit(_run, move, slot.last, tuple(after))
        except RuntimeError as error:  # no thread can be started
            return EndedTransfer(SpillError(f"could not start a transfer of page {slot.page}: {error}"))
        slot.last = _ThreadTransfer(future)
        return slot.last


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a transfer in an I/O thread. A failure is a value: one raised there would keep frames alive."""

    span: Span | None = None
    error: SpillError | None = None


class _ThreadTransfer:
    """A transfer in an I/O thread."""

    __slots__ = ("_future",)

    def __init__(self, future: Future[_Outcome]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        error = self._future.result().error
        if error is not None:
            raise copy(error)

    def span(self) -> Span | None:
        return self._future.result().span


def _run(move: Callable[[], None], previous: Transfer | None, after: tuple[Transfer, ...]) -> _Outcome:
    """In an I/O thread: move a page once the previous transfer of it ended, and those in `after` ended well."""
    try:
        _outlast(previous)
        for transfer in after:
            transfer.wait()
        start = time.perf_counter()
        move()
        return _Outcome(Span(threading.current_thread().name, start, time.perf_counter()))
    except SpillError as error:
        return _Outcome(error=error.with_traceback(None))
    except Exception as error:  # noqa: BLE001 - whatever went wrong belongs to the one who waits
        return _Outcome(error=SpillError(f"a transfer failed: {type(error).__name__}: {error}"))


def _outlast(previous: Transfer | None) -> None:
    if previous is not None:
        try:
            previous.wait()
        except SpillError:  # its own waiter learns that; what follows on the same page is judged by its checksum
            return


class _Staging:
    """Buffers between the file and tensors that it cannot move. Thread-safe: a list appends and pops in one piece."""

    def __init__(self) -> None:
        self._idle: list[Tensor] = []

    def take(self, nbytes: int) -> Tensor:
        try:
            buffer = self._idle.pop()
        except IndexError:
            return new_host_buffer(nbytes)
        return buffer if buffer.numel() == nbytes else new_host_buffer(nbytes)

    def give(self, buffer: Tensor) -> None:
        self._idle.append(buffer)


class _StagedRead:
    """A read whose last leg, staging buffer to tensor, is a copy on the stream of the first one who waits."""

    __slots__ = ("_into", "_read", "_staging", "_staging_pool")

    def __init__(self, read: Transfer, staging: Tensor, into: Tensor, pool: _Staging) -> None:
        self._read = read
        self._staging: Tensor | None = staging
        self._into = into
        self._staging_pool = pool

    def done(self) -> bool:
        return self._read.done()

    def wait(self) -> None:
        self._read.wait()
        if self._staging is not None:
            self._into.copy_(self._staging)
            self._staging_pool.give(self._staging)
            self._staging = None

    def span(self) -> Span | None:
        return self._read.span()


def _can_move(file: SpillFile, tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and (is_aligned(tensor) or not file.is_direct)


def write_page(file: SpillFile, slot: Slot, source: Tensor) -> None:
    """In an I/O thread: store a page with its checksum."""
    slot.checksum = None
    view = bytes_of(source)
    with profiled("write"):
        checksum = xxhash.xxh3_64_intdigest(view)
        file.write(view, slot.offset)
    slot.checksum = checksum


def _write_staged(file: SpillFile, slot: Slot, staging: Tensor, pool: _Staging) -> None:
    try:
        write_page(file, slot, staging)
    finally:
        pool.give(staging)


def read_page(file: SpillFile, slot: Slot, into: Tensor) -> None:
    """In an I/O thread: fill `into` with a page and compare its checksum."""
    view = bytes_of(into)
    with profiled("read"):
        file.read(view, slot.offset)
        checksum = xxhash.xxh3_64_intdigest(view)
    if slot.checksum != checksum:
        raise CorruptPageError(
            f"page {slot.page} ({format_bytes(slot.nbytes)}) read from the spill file is not what was written; "
            "check the disk, then load a state dict or checkpoint"
        )


def _shut_down(threads: ThreadPoolExecutor, file: SpillFile, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has no such threads to wait for
        threads.shutdown(wait=True)
    file.close()
