"""One data file, read past the page cache in aligned chunks, ahead of whoever asks for them.

A page takes its part of every tensor of its parameter, so a file is read in as many streams at once as a parameter has
tensors, each going on where it was. There is room for the chunk that each stream is in and the one after it. What
leaves first is a chunk that was read to its end, then the one that was not asked for the longest. Small tensors are
neighbours and share chunks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from pagedopt.checkpoint import files
from pagedopt.tiers.buffers import bytes_of, new_host_buffer

CHUNK = 2 << 20
"""Bytes read at once: enough for a disk's full speed, and one huge page of RAM."""

_MAX_STREAMS = 4
"""Tensors of a parameter."""

_MAX_CHUNKS = 2 * _MAX_STREAMS
"""Chunks in memory."""

_THREADS = 2


class FileReader:
    """The bytes of a file.

    Attributes:
        nbytes: of the file, when it was opened.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = files.open_regular(path)
        self._chunks: OrderedDict[int, tuple[Tensor, Future[None] | None]] = OrderedDict()  # the first to leave first
        self._threads: ThreadPoolExecutor | None = None
        try:
            self.nbytes = files.size(self._fd)
            if self.nbytes > CHUNK:
                files.make_direct(self._fd)
        except BaseException:
            self.close()
            raise

    def views(self, offset: int, nbytes: int) -> Iterator[memoryview]:
        """Yield the bytes [offset, offset + nbytes) in pieces, each valid until the next is asked for.

        Raises:
            OSError: they cannot be read.
        """
        stop = offset + nbytes
        while offset < stop:
            number, within = divmod(offset, CHUNK)
            count = min(CHUNK - within, stop - offset)
            yield bytes_of(self._chunk(number))[within : within + count]
            offset += count
            if within + count == CHUNK and number in self._chunks:
                self._chunks.move_to_end(number, last=False)

    def close(self) -> None:
        """Close the file. May be called again."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._chunks.clear()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            files.close_read(fd, self._path)

    def _chunk(self, number: int) -> Tensor:
        """Return a chunk, with the one after it being read; they are the last to leave."""
        for wanted in (number, number + 1):
            if wanted * CHUNK < self.nbytes:
                self._start(wanted)
                self._chunks.move_to_end(wanted)
        buffer, future = self._chunks[number]
        if future is not None:
            try:
                future.result()
            except BaseException:
                del self._chunks[number]  # a second attempt may succeed
                raise
            self._chunks[number] = buffer, None
        return buffer

    def _start(self, number: int) -> None:
        """Begin to read a chunk that is not there."""
        if number in self._chunks:
            return
        buffer = self._free_buffer()
        offset = number * CHUNK
        nbytes = min(CHUNK, self.nbytes - offset)
        if self.nbytes <= CHUNK:
            files.read(self._fd, bytes_of(buffer)[:nbytes], offset)
            self._chunks[number] = buffer, None
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pagedopt-load")
        future = self._threads.submit(files.read_chunk, self._fd, bytes_of(buffer), offset, nbytes)
        self._chunks[number] = buffer, future

    def _free_buffer(self) -> Tensor:
        if len(self._chunks) < _MAX_CHUNKS:
            return new_host_buffer(CHUNK)
        buffer, future = self._chunks.popitem(last=False)[1]
        if future is not None and not future.cancel():
            future.exception()  # waits; nobody asked for it yet, and who does reads it anew
        return buffer
