"""Disks that fail, in the place of `os` in `pagedopt.checkpoint.files`.

FailingOs     one call, or every call from one on, fails or moves only a part
RecordingOs   a real disk that remembers what was done to it; `images` are what a power cut may leave of that
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any

SECTOR = 512

_CALLS = (
    "open", "close", "fstat", "preadv", "pwritev", "fsync", "ftruncate", "posix_fallocate", "replace", "unlink",
    "listdir", "mkdir", "rmdir",
)  # fmt: skip


class FailingOs:
    """`os`, but the call number `fails_at` (and with `lasting` all after it) fails.

    Attributes:
        failed: the name of the first call that failed, None if there were not as many.
    """

    def __init__(self, fails_at: int, *, error: int = errno.EIO, lasting: bool = False, short: bool = False) -> None:
        self._fails_at, self._error, self._lasting, self._short = fails_at, error, lasting, short
        self._lock = threading.Lock()
        self._calls = 0
        self.failed: str | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._wrapped(name, real) if name in _CALLS else real

    def _wrapped(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if not self._is_due():
                return real(*arguments, **named)
            self.failed = self.failed or name
            if name == "close":
                real(*arguments)  # what cannot be closed is gone all the same
            if self._short and name in ("preadv", "pwritev"):
                fd, (view,), offset = arguments
                part = view[: len(view) // 2 // SECTOR * SECTOR] if len(view) > SECTOR else view[: len(view) // 2]
                if part:
                    return real(fd, [part], offset)
            raise OSError(self._error, os.strerror(self._error), str(arguments[0]))

        return call

    def _is_due(self) -> bool:
        with self._lock:
            self._calls += 1
            return self._calls == self._fails_at or (self._lasting and self._calls > self._fails_at)


@dataclass
class _Inode:
    """A file's bytes that are on the disk for sure, and what was done to it since."""

    durable: bytes = b""
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)

    def contents(self, keep: Any) -> bytes:
        """Return the file after a crash; `keep` says of each sector of each pending change whether it arrived."""
        data = bytearray(self.durable)
        for kind, offset, content in self.pending:
            if kind == "resize":
                if keep():
                    del data[offset:]
                    data.extend(bytes(offset - len(data)))
                continue
            for start in range(0, len(content), SECTOR):
                if keep():
                    piece = content[start : start + SECTOR]
                    data.extend(bytes(max(0, offset + start + len(piece) - len(data))))
                    data[offset + start : offset + start + len(piece)] = piece
        return bytes(data)


@dataclass
class Moment:
    """A disk at one moment: which inode has which name for sure, and which has it now."""

    inodes: dict[int, _Inode]
    durable: dict[str, int]
    current: dict[str, int]


class RecordingOs:
    """`os` for one folder, whose state after every call can be asked for.

    It promises what POSIX does and no more: fsync of a file keeps its bytes, fsync of the folder keeps its names; of
    everything else any part may be lost, each sector and each name by itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._fds: dict[int, int | None] = {}
        self.moments: list[tuple[str, Moment]] = []
        self._now = Moment({}, {}, {})
        for path in sorted(folder.iterdir()):
            number = len(self._now.inodes)
            self._now.inodes[number] = _Inode(path.read_bytes())
            self._now.durable[path.name] = self._now.current[path.name] = number

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _did(self, what: str) -> None:
        now = self._now
        inodes = {number: _Inode(inode.durable, list(inode.pending)) for number, inode in now.inodes.items()}
        self.moments.append((what, Moment(inodes, dict(now.durable), dict(now.current))))

    def _inode(self, fd: int) -> _Inode:
        number = self._fds[fd]
        assert number is not None
        return self._now.inodes[number]

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        with self._lock:
            path = Path(path)
            is_new = bool(flags & os.O_CREAT) and not path.exists()
            fd = os.open(path, flags, mode)
            if path == self._folder:
                self._fds[fd] = None
            elif is_new:
                number = len(self._now.inodes)
                self._now.inodes[number] = _Inode()
                self._now.current[path.name] = self._fds[fd] = number
                self._did(f"create {path.name}")
            else:
                self._fds[fd] = self._now.current.get(path.name)
            return fd

    def pwritev(self, fd: int, views: list[memoryview], offset: int) -> int:
        with self._lock:
            count = os.pwritev(fd, views, offset)
            self._inode(fd).pending.append(("write", offset, bytes(views[0][:count])))
            self._did(f"write {count} at {offset}")
            return count

    def posix_fallocate(self, fd: int, offset: int, nbytes: int) -> None:
        with self._lock:
            os.posix_fallocate(fd, offset, nbytes)
            self._inode(fd).pending.append(("resize", offset + nbytes, b""))
            self._did("allocate")

    def ftruncate(self, fd: int, nbytes: int) -> None:
        with self._lock:
            os.ftruncate(fd, nbytes)
            self._inode(fd).pending.append(("resize", nbytes, b""))
            self._did("truncate")

    def fsync(self, fd: int) -> None:
        with self._lock:
            os.fsync(fd)
            if self._fds[fd] is None:
                self._now.durable = dict(self._now.current)
                self._did("sync folder")
            else:
                inode = self._inode(fd)
                inode.durable, inode.pending = inode.contents(lambda: True), []
                self._did("sync file")

    def replace(self, old: Any, new: Any) -> None:
        with self._lock:
            os.replace(old, new)  # noqa: PTH105 - what this stands in for
            self._now.current[Path(new).name] = self._now.current.pop(Path(old).name)
            self._did(f"rename to {Path(new).name}")

    def unlink(self, path: Any) -> None:
        with self._lock:
            os.unlink(path)  # noqa: PTH108 - what this stands in for
            self._now.current.pop(Path(path).name)
            self._did(f"unlink {Path(path).name}")


def images(moment: Moment, rng: random.Random, count: int) -> Iterator[dict[str, bytes]]:
    """Yield what the folder may hold after a power cut.

    First all bytes that were written, under every choice of the names that were not synced; then no bytes and names
    that were not synced, and random parts of both.
    """
    names = sorted({*moment.durable, *moment.current})
    unsure = [name for name in names if moment.durable.get(name) != moment.current.get(name)]
    for moved in powerset(unsure):
        where = {name: moment.current if name in moved else moment.durable for name in names}
        yield {name: moment.inodes[where[name][name]].contents(lambda: True) for name in names if name in where[name]}
    for share in (0.0, *(rng.random() for _ in range(count))):

        def keep(share: float = share) -> bool:
            return rng.random() < share

        found = {}
        for name in names:
            kept = moment.current if keep() else moment.durable
            if name in kept:
                found[name] = moment.inodes[kept[name]].contents(keep)
        yield found


def powerset(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield every choice of `names`, none of them first."""
    return chain.from_iterable(combinations(names, count) for count in range(len(names) + 1))
