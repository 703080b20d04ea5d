"""Every file operation of a checkpoint, and nothing else: what the system may do by halves is continued or raised here.

Tests replace `os` in this module to make any one of them fail, or to forget what was not synced.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
from pathlib import Path

from pagedopt.tiers.buffers import DIRECT_ALIGNMENT

if sys.platform != "win32":
    import fcntl

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_CLOEXEC", 0)
_NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


def create(path: Path) -> int:
    """Make and open a file that must not exist, for writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)


def make_direct(fd: int) -> None:
    """Let transfers bypass the page cache where the file system can; they must then be aligned."""
    if sys.platform == "win32" or not hasattr(os, "O_DIRECT"):
        return
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_DIRECT:  # else all goes through the cache, with the same result
            raise


def open_regular(path: Path) -> int:
    """Open a file for reading. What is no regular file (a pipe would make us wait for ever) is an error."""
    fd = os.open(path, os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0))
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    if is_regular:
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def size(fd: int) -> int:
    """Return the bytes of an open file."""
    return os.fstat(fd).st_size


def read(fd: int, into: memoryview, offset: int) -> None:
    """Fill `into` from `offset` on; a file that ends early is an error."""
    done = 0
    while done < len(into):
        done += _some(_read_some(fd, into[done:], offset + done))


def read_chunk(fd: int, into: memoryview, offset: int, nbytes: int) -> None:
    """Fill the first `nbytes` of `into`, aligned in memory and in length, from the aligned `offset` on."""
    done = 0
    while done < nbytes:
        begin = done // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT
        try:
            count = _read_some(fd, into[begin:], offset + begin)
        except OSError as error:
            if error.errno not in _NOT_DIRECT or not _leave_direct(fd):
                raise
            continue
        _some(begin + count - done)
        done = begin + count


def _some(count: int) -> int:
    if count <= 0:
        raise OSError(errno.EIO, "the file ends early")
    return count


def write(fd: int, source: memoryview, offset: int) -> None:
    """Store `source` from `offset` on."""
    done = 0
    while done < len(source):
        try:
            count = _write_some(fd, source[done:], offset + done)
        except OSError as error:
            if error.errno not in _NOT_DIRECT or not _leave_direct(fd):
                raise
            continue
        if count == 0:
            raise OSError(errno.EIO, "the system takes no more bytes")
        done += count


if hasattr(os, "preadv"):

    def _read_some(fd: int, into: memoryview, offset: int) -> int:
        return os.preadv(fd, [into], offset)

    def _write_some(fd: int, source: memoryview, offset: int) -> int:
        return os.pwritev(fd, [source], offset)

else:  # Windows has neither; an open checkpoint file is used by one thread

    def _read_some(fd: int, into: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        piece = os.read(fd, min(len(into), 1 << 20))
        into[: len(piece)] = piece
        return len(piece)

    def _write_some(fd: int, source: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, source)


def _leave_direct(fd: int) -> bool:
    """Send what comes next through the page cache: a transfer was of no length that this disk takes directly."""
    if sys.platform == "win32" or not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & os.O_DIRECT:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return True


def reserve(fd: int, nbytes: int) -> None:
    """Take room on the disk, so that a full one shows before anything is written, where the system has such a call."""
    if not hasattr(os, "posix_fallocate") or not nbytes:
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (*_NOT_DIRECT, errno.ENOSYS):  # else this file system cannot, and a write will tell
            raise


def truncate(fd: int, nbytes: int) -> None:
    """Cut or extend an open file to `nbytes`."""
    os.ftruncate(fd, nbytes)


def sync(fd: int) -> None:
    """Return when all that was written is on the disk itself."""
    if sys.platform == "darwin":  # there fsync reaches the drive's cache only
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk. Windows has no such call."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY | _BINARY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def close(fd: int) -> None:
    """Close a file. That this fails can be how the system tells that bytes written before are lost."""
    os.close(fd)


def close_read(fd: int, path: Path) -> None:
    """Close a file of which nothing was written. What was read of it stays true if that fails, which is said."""
    try:
        os.close(fd)
    except OSError as error:
        warnings.warn(f"{path} was read, and could not be closed: {error.strerror or error}", stacklevel=2)


def replace(old: Path, new: Path) -> None:
    """Give `old` the name `new` in one step, whatever had it."""
    os.replace(old, new)  # noqa: PTH105 - pathlib would go around this module's `os`


def remove(path: Path) -> None:
    """Remove a file; one that is gone already is fine."""
    try:
        os.unlink(path)  # noqa: PTH108 - as above
    except FileNotFoundError:
        return


def names(folder: Path) -> list[str]:
    """Return the names in `folder`."""
    return os.listdir(folder)  # noqa: PTH208 - as above


def make_folder(folder: Path) -> list[Path]:
    """Make `folder` and those above it that are missing, all on the disk, or none; return them, outermost first."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if os.path.isdir(path))]  # noqa: PTH112 - as above
    made: list[Path] = []
    try:
        for path in reversed(missing):
            try:
                os.mkdir(path)  # noqa: PTH102 - as above
                made.append(path)
            except FileExistsError:
                if not os.path.isdir(path):  # noqa: PTH112 - as above
                    raise
            sync_folder(path.parent)
    except BaseException:
        remove_folders(made)
        raise
    return made


def remove_folders(made: list[Path]) -> None:
    """Remove folders that `make_folder` made, up to the first in which there is something by now."""
    for path in reversed(made):
        try:
            os.rmdir(path)  # noqa: PTH106 - as above
        except OSError as error:  # noqa: PERF203 - each is removed on its own
            if error.errno not in _NOT_EMPTY:
                warnings.warn(f"{path} is empty, and could not be removed: {error.strerror or error}", stacklevel=2)
            return


class FolderLock:
    """A note to other processes that this one writes in `folder`; gone with the process.

    Where the system has no such locks, nobody is ever known to be alone.
    """

    def __init__(self, folder: Path) -> None:
        self._fd: int | None = None
        if sys.platform != "win32":
            self._fd = os.open(folder, os.O_RDONLY | _BINARY)
            self._try(fcntl.LOCK_SH)  # waits while another tidies up, which is short

    def is_alone(self) -> bool:
        """Return whether no other process writes here, as far as is known."""
        return sys.platform != "win32" and self._try(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _try(self, kind: int) -> bool:
        assert self._fd is not None
        try:
            fcntl.flock(self._fd, kind)
        except OSError:  # taken by another, or no locks on this file system
            return False
        return True

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
