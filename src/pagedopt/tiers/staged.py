"""Pages of an accelerator on disk: they pass through a ring of pinned pages, so that three stages overlap.

    write   update ──▶ copy down ──▶ checksum, file          read   file, checksum ──▶ copy up ──▶ update
            caller's    down          I/O thread                    I/O thread        up          caller's
            stream      stream                                                        stream      stream

Copies down are started by the caller, copies up by the I/O thread that read the page. Reads and writes have a ring
each: what a write holds is free once an I/O thread wrote it, and what a read holds once its copy up has ended, so
neither can keep the other waiting for ever. A caller that writes faster than the disk waits here for room.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.tiers.base import EndedTransfer, Span, Transfer
from pagedopt.tiers.disk import DiskTier, read_page, write_page
from pagedopt.tiers.slabs import Room, Slabs
from pagedopt.tiers.streams import Mark, Streams
from pagedopt.units import format_bytes

MAX_RING_PAGES = 8
"""As many as there are I/O threads."""


class Ring:
    """A few pinned pages that are used in turn. Thread-safe.

    Raises:
        SpillError: the budget has no room for even one.
    """

    def __init__(self, slabs: Slabs, num_pages: int, page_nbytes: int) -> None:
        self._slabs = slabs
        self._rooms: list[Room] = []
        while len(self._rooms) < num_pages and (room := slabs.take()) is not None:
            self._rooms.append(room)
        if not self._rooms:
            raise SpillError(
                f"max_host_memory has no room for the pinned pages of {format_bytes(page_nbytes)} that pages on disk "
                "pass through; raise it or lower page_size"
            )
        self.take_back()

    def take(self) -> tuple[Room, Tensor]:
        """Return a page that nothing uses any more; waits for one.

        Raises:
            MemoryError: its memory cannot be allocated.
        """
        room, last = self._idle.get()
        try:
            if last is not None:
                last.synchronize()
            return room, self._slabs.memory(room)
        except BaseException:
            self._idle.put((room, None))
            raise

    def give(self, room: Room, last: Mark | None = None) -> None:
        """Take a page back, to be used again when `last` has ended."""
        self._idle.put((room, last))

    def take_back(self) -> None:
        """Take all pages back, whoever had them. Nothing may be under way."""
        self._idle: SimpleQueue[tuple[Room, Mark | None]] = SimpleQueue()
        for room in self._rooms:
            self._idle.put((room, None))

    def close(self) -> None:
        """Give the memory back. Nothing may be under way."""
        while self._rooms:
            self._slabs.give(self._rooms.pop())


class StagedDiskTier(DiskTier):
    """A `DiskTier` for tensors on a device.

    Args:
        page_nbytes: bytes of every page.
        folder: where the file lies; None: the system's temporary folder.
        slabs: pinned memory for the rings; taken at once.
        streams: of the device.
        ring_pages: pages of each of the two rings.

    Raises:
        SpillError: the budget has no room for the rings.
    """

    def __init__(
        self, page_nbytes: int, folder: Path | None, *, slabs: Slabs, streams: Streams, ring_pages: int
    ) -> None:
        super().__init__(page_nbytes, folder)
        self._streams = streams
        self._going_down = Ring(slabs, ring_pages, page_nbytes)
        try:
            self._coming_up = Ring(slabs, ring_pages, page_nbytes)
        except SpillError:
            self._going_down.close()
            raise

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        up: Future[Mark] = Future()
        fill = partial(self._fill, page, into, [to_be_followed(transfer) for transfer in after], up)
        return _StagedRead(self._start(self._slots[page], fill, ()), up)

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        try:
            room, memory = self._going_down.take()
        except MemoryError as error:
            return EndedTransfer(SpillError(f"could not stage page {page}: {error}"))
        try:
            nbytes = self._slots[page].nbytes
            copied = self._streams.copy_down(memory[:nbytes], source, [to_be_followed(t) for t in after])
        except (SpillError, RuntimeError) as error:
            self._going_down.give(room)
            return EndedTransfer(SpillError(f"could not stage page {page}: {error}"))
        except BaseException:  # an interrupt must not take a page out of the ring
            self._going_down.give(room)
            raise
        stored = self._start(self._slots[page], partial(self._store, page, room, memory[:nbytes], copied), ())
        if isinstance(stored, EndedTransfer):  # no thread could be started, so none gives the page back
            self._going_down.give(room, copied)
        return StagedWrite(stored, copied)

    def finish(self) -> None:
        super().finish()
        self._streams.finish_copies()
        self._going_down.take_back()
        self._coming_up.take_back()

    def close(self) -> None:
        super().close()
        self._streams.finish_copies()
        self._going_down.close()
        self._coming_up.close()

    def _fill(self, page: int, into: Tensor, after: Sequence[Transfer], up: Future[Mark]) -> None:
        """In an I/O thread: the file into the ring, and the ring into the frame."""
        room, memory = self._coming_up.take()
        last: Mark | None = None
        try:
            slot = self._slots[page]
            read_page(self._opened(), slot, memory[: slot.nbytes])
            last = self._streams.copy_up(into, memory[: slot.nbytes], after)
            up.set_result(last)
        finally:
            self._coming_up.give(room, last)

    def _store(self, page: int, room: Room, memory: Tensor, copied: Mark) -> None:
        """In an I/O thread: the ring into the file."""
        try:
            copied.synchronize()
            write_page(self._opened(), self._slots[page], memory)
        finally:
            self._going_down.give(room)


class StagedWrite:
    """A write of two legs: `copied` has ended when the tensor may change, the whole when the page is on disk."""

    __slots__ = ("_stored", "copied")

    def __init__(self, stored: Transfer, copied: Mark) -> None:
        self._stored = stored
        self.copied = copied

    def done(self) -> bool:
        return self._stored.done()

    def wait(self) -> None:
        self.copied.wait()
        self._stored.wait()

    def span(self) -> Span | None:
        return self._stored.span()


class _StagedRead:
    """A read whose first leg the host waits for, and whose second, the copy up, the current stream waits for."""

    __slots__ = ("_read", "_up")

    def __init__(self, read: Transfer, up: Future[Mark]) -> None:
        self._read = read
        self._up = up

    def done(self) -> bool:
        return self._read.done() and (not self._up.done() or self._up.result().done())

    def wait(self) -> None:
        self._read.wait()
        self._up.result().wait()

    def span(self) -> Span | None:
        return self._read.span()


def to_be_followed(transfer: Transfer) -> Transfer:
    """Return what must end before the memory on the device that `transfer` is about may be used for something else.

    A copy up need not wait until what was in its frame is on the disk: it is enough that it was copied down. If it then
    cannot be stored, it is lost whoever is in its frame, and the pager learns that from the write.
    """
    return transfer.copied if isinstance(transfer, StagedWrite) else transfer
