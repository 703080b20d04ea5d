"""One new data file, written at a few places at once, past the page cache, with the disk busy meanwhile.

A page has parts of every tensor of its parameters, so a file grows in as many streams as a parameter has tensors. Each
stream fills an aligned chunk, which a thread stores when it is full. The ends of streams are not aligned: blocks that
two tensors share are put together in memory and stored at the end.

    file      |---- exp_avg ----|---- exp_avg_sq ----|-- absmax --| ...
    chunks       [###][###][#        [##][####][#       [#
    shared    ^                 ^                    ^            ^     blocks of 4096 bytes
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pagedopt.checkpoint import files
from pagedopt.tiers.buffers import DIRECT_ALIGNMENT as BLOCK
from pagedopt.tiers.buffers import bytes_of, new_host_buffer

CHUNK = 1 << 20
"""Bytes stored at once: enough for a disk's full speed."""

_MAX_STREAMS = 4
_MAX_IN_FLIGHT = 4
_THREADS = 2


@dataclass(slots=True, eq=False)
class _Stream:
    """Bytes [base + low, base + high) of the file, in an aligned buffer."""

    buffer: Tensor
    base: int
    low: int
    high: int


class FileWriter:
    """A file of `nbytes`, of which every byte is written once.

    Memory is eight chunks and a block for each end of a tensor that fills more than a chunk.

    Raises:
        OSError: from every method, once the disk fails.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self._nbytes = nbytes
        self._fd = files.create(path)
        self._streams: dict[int, _Stream] = {}  # by the offset at which each goes on, the one used last at the end
        self._shared: dict[int, bytearray] = {}  # by number of the block
        self._idle: list[Tensor] = []
        self._in_flight: deque[tuple[Future[None], Tensor]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        try:
            files.reserve(self._fd, nbytes)
            if nbytes > CHUNK:
                files.make_direct(self._fd)
        except BaseException:
            self.close()
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Store `data` at `offset`, some time before `finish` returns."""
        stream = self._streams.pop(offset, None)
        if stream is None:
            if len(self._streams) == _MAX_STREAMS:
                self._end(self._streams.pop(next(iter(self._streams))))
            low = offset % BLOCK
            stream = _Stream(self._buffer(), offset - low, low, low)
        while data:
            count = min(len(data), CHUNK - stream.high)
            bytes_of(stream.buffer)[stream.high : stream.high + count] = data[:count]
            stream.high += count
            data = data[count:]
            if stream.high == CHUNK:
                self._store(stream)
                stream.buffer, stream.base, stream.low, stream.high = self._buffer(), stream.base + CHUNK, 0, 0
        self._streams[stream.base + stream.high] = stream

    def finish(self) -> None:
        """Return when the whole file is on the disk, except for its name."""
        while self._streams:
            self._end(self._streams.pop(next(iter(self._streams))))
        while self._in_flight:
            self._await_oldest()
        self._store_shared()
        files.truncate(self._fd, self._nbytes)
        files.sync(self._fd)

    def close(self) -> None:
        """Close the file, whole or not. May be called again."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            files.close(fd)

    def _buffer(self) -> Tensor:
        if not self._idle and len(self._in_flight) >= _MAX_IN_FLIGHT:
            self._await_oldest()
        return self._idle.pop() if self._idle else new_host_buffer(CHUNK)

    def _await_oldest(self) -> None:
        future, buffer = self._in_flight.popleft()
        future.result()
        self._idle.append(buffer)

    def _end(self, stream: _Stream) -> None:
        self._store(stream)
        if not any(buffer is stream.buffer for _, buffer in self._in_flight):
            self._idle.append(stream.buffer)

    def _store(self, stream: _Stream) -> None:
        """Begin to store the whole blocks of a stream; keep the parts of blocks at its ends."""
        first, last = -(-stream.low // BLOCK) * BLOCK, stream.high // BLOCK * BLOCK
        if first > last:  # within one block
            self._share(stream, stream.low, stream.high)
            return
        self._share(stream, stream.low, first)
        self._share(stream, last, stream.high)
        if first < last:
            self._submit(stream.buffer, stream.base, first, last)

    def _share(self, stream: _Stream, low: int, high: int) -> None:
        if low < high:
            block = self._shared.setdefault((stream.base + low) // BLOCK, bytearray(BLOCK))
            within = low % BLOCK
            block[within : within + high - low] = bytes_of(stream.buffer)[low:high]

    def _submit(self, buffer: Tensor, base: int, first: int, last: int) -> None:
        if self._nbytes <= CHUNK:
            files.write(self._fd, bytes_of(buffer)[first:last], base + first)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pagedopt-save")
        future = self._threads.submit(files.write, self._fd, bytes_of(buffer)[first:last], base + first)
        self._in_flight.append((future, buffer))

    def _store_shared(self) -> None:
        """Store the blocks that were put together, neighbours at once."""
        buffer = self._buffer()
        run: list[int] = []
        for number in [*sorted(self._shared), -1]:
            if run and (number != run[-1] + 1 or len(run) == CHUNK // BLOCK):
                files.write(self._fd, bytes_of(buffer)[: len(run) * BLOCK], run[0] * BLOCK)
                run = []
            if number >= 0:
                bytes_of(buffer)[len(run) * BLOCK : (len(run) + 1) * BLOCK] = self._shared.pop(number)
                run.append(number)
