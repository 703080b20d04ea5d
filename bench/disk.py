"""How fast the disk is by itself: page-sized requests in order, as many under way as the engine has.

direct      past the page cache: the disk             buffered      through it: the disk and RAM that nobody counted
both        reads and writes of the same file at once, half each: what a paged step does
huge        the same into memory of huge pages, which is what frames of 2 MiB and more are in
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.measure import EXACT, Candidate, Ready


@dataclass(frozen=True, slots=True)
class Requests:
    """How a file is moved.

    Attributes:
        nbytes: of the file, a multiple of `request_nbytes`.
        request_nbytes: moved at once, a multiple of 4096.
        depth: requests under way in each direction.
    """

    nbytes: int
    request_nbytes: int
    depth: int

    def offsets(self) -> range:
        return range(0, self.nbytes, self.request_nbytes)


class RawFile:
    """A nameless file of random bytes, moved by threads.

    Attributes:
        is_direct: whether it is moved past the page cache.
    """

    def __init__(self, folder: Path, requests: Requests, *, direct: bool) -> None:
        self._requests = requests
        self._fd, self.is_direct = _open(folder, direct=direct)
        self._threads = ThreadPoolExecutor(2 * requests.depth)
        noise = os.urandom(requests.request_nbytes)  # a disk may compress, and may keep zeros nowhere
        self._buffers = [_filled(noise) for _ in range(2 * requests.depth)]
        self._huge_buffers = [_filled(noise, huge=True) for _ in range(2 * requests.depth)]
        self.write()

    def read(self) -> None:
        """Read the whole file."""
        if not self.is_direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._run([self._reader(lane, self._buffers) for lane in range(self._requests.depth)])

    def write(self) -> None:
        """Write the whole file, until it is on the disk."""
        self._run([self._writer(lane, self._buffers) for lane in range(self._requests.depth)])
        if not self.is_direct:
            os.fdatasync(self._fd)

    def both(self, *, huge: bool = False) -> None:
        """Read the whole file, and write it behind."""
        lanes, buffers = range(self._requests.depth), self._huge_buffers if huge else self._buffers
        self._run([self._reader(lane, buffers) for lane in lanes] + [self._writer(lane, buffers) for lane in lanes])

    def close(self) -> None:
        self._threads.shutdown()
        os.close(self._fd)

    def _reader(self, lane: int, buffers: list[mmap.mmap]) -> Callable[[], None]:
        return partial(self._move, os.preadv, buffers[lane], lane)

    def _writer(self, lane: int, buffers: list[mmap.mmap]) -> Callable[[], None]:
        return partial(self._move, os.pwritev, buffers[self._requests.depth + lane], lane)

    def _move(self, call: Callable[[int, list[mmap.mmap], int], int], buffer: mmap.mmap, lane: int) -> None:
        for offset in self._requests.offsets()[lane :: self._requests.depth]:
            moved = call(self._fd, [buffer], offset)
            if moved != len(buffer):
                raise OSError(f"the disk moved {moved} of {len(buffer)} bytes at {offset}; is it full?")

    def _run(self, moves: list[Callable[[], None]]) -> None:
        for future in [self._threads.submit(move) for move in moves]:
            future.result()


def _filled(noise: bytes, *, huge: bool = False) -> mmap.mmap:
    buffer = mmap.mmap(-1, len(noise), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    buffer[:] = noise
    return buffer


def _open(folder: Path, *, direct: bool) -> tuple[int, bool]:
    fd, path = tempfile.mkstemp(dir=folder)
    Path(path).unlink()
    if not direct or not hasattr(os, "O_DIRECT"):
        return fd, False
    try:
        flags = os.O_RDWR | os.O_DIRECT
        direct_fd = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:  # tmpfs and some network file systems only go through the cache: the row says so
        return fd, False
    os.close(fd)
    return direct_fd, True


@contextmanager
def raw_file(folder: Path, requests: Requests, *, direct: bool) -> Iterator[RawFile]:
    """Make a `RawFile` and close it."""
    file = RawFile(folder, requests, direct=direct)
    try:
        yield file
    finally:
        file.close()


def disk_probes(direct: RawFile, buffered: RawFile, requests: Requests) -> list[Candidate]:
    """Return candidates that only move the two files; the first, both ways, is a paged step's ceiling."""
    note = _note(direct)

    def probe(name: str, move: Callable[[], None], nbytes: int, runs: str) -> Candidate:
        return Candidate(name, lambda: Ready(move, EXACT, nbytes), runs)

    return [
        probe("disk read and write", direct.both, 2 * requests.nbytes, note),
        probe("disk read and write, huge pages", partial(direct.both, huge=True), 2 * requests.nbytes, note),
        probe("disk read", direct.read, requests.nbytes, note),
        probe("disk write", direct.write, requests.nbytes, note),
        probe("disk read, buffered", buffered.read, requests.nbytes, "through the page cache, dropped before"),
        probe("disk write, buffered", buffered.write, requests.nbytes, "through the page cache, synced after"),
    ]


def _note(file: RawFile) -> str:
    return "past the page cache" if file.is_direct else "through the page cache, which cannot be bypassed here"
