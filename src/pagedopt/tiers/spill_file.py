"""The scratch file under the disk tier: private, nameless where the system allows, with room taken in advance.

Every call to the operating system that can do less than it was asked is continued or raised. A file is
never a checkpoint: nothing in it can be read after the process that made it.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import tempfile
import threading
import weakref
from pathlib import Path

from pagedopt.errors import SpillError
from pagedopt.tiers.buffers import DIRECT_ALIGNMENT, bytes_of, new_host_buffer
from pagedopt.units import format_bytes

if sys.platform != "win32":
    import fcntl

_PRIVATE = 0o600
_PIECE_NBYTES = 1 << 20


class SpillFile:
    """An open scratch file that is gone when it is closed, garbage, or its process is dead.

    Args:
        folder: where it lies; None: the system's temporary folder.
        direct: bypass the page cache where the system can; every transfer must then be aligned.

    Attributes:
        is_direct: whether transfers must be aligned, because they bypass the page cache.
        is_nameless: whether the file has no name, so that even a killed process leaves nothing behind.
        nbytes: room taken on the disk.

    Raises:
        SpillError: the file cannot be made in `folder`.
    """

    def __init__(self, folder: Path | None = None, *, direct: bool = True) -> None:
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        self.nbytes = 0
        self.seek_lock = threading.Lock()
        try:
            self.fd, leftover = _open(self.folder)
            self._finalizer = weakref.finalize(self, _close, self.fd, leftover, os.getpid())
            self.is_direct = direct and _make_direct(self.fd)
        except OSError as error:
            what = f"could not make a spill file in {self.folder}"
            raise _spill_error(error, what, "set spill_dir to a folder where that works") from None
        self.is_nameless = leftover is None

    def extend(self, nbytes: int) -> None:
        """Take room for `nbytes` more.

        Raises:
            SpillError: the disk has not that much.
        """
        try:
            _allocate(self.fd, self.nbytes, nbytes)
        except OSError as error:
            what = f"could not take {format_bytes(nbytes)} for the spill file in {self.folder}"
            what += f" (it has {format_bytes(self.nbytes)})"
            raise _spill_error(error, what, "free some, set spill_dir to a larger disk or raise the budget") from None
        self.nbytes += nbytes

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` from `offset` on.

        Raises:
            SpillError: the file could not be read, or ends early.
        """
        done = 0
        try:
            while done < len(into):
                done += _some(_read_some(self, into[done:], offset + done), "the file ends early")
        except OSError as error:
            what = f"could not read {format_bytes(len(into))} at {offset + done} of the spill file in {self.folder}"
            raise _spill_error(error, what, "check the disk") from None

    def write(self, source: memoryview, offset: int) -> None:
        """Store `source` from `offset` on.

        Raises:
            SpillError: it could not be stored whole.
        """
        done = 0
        try:
            while done < len(source):
                done += _some(_write_some(self, source[done:], offset + done), "the system takes no more bytes")
        except OSError as error:
            what = f"could not write {format_bytes(len(source))} at {offset + done} of the spill file in {self.folder}"
            raise _spill_error(error, what, "check the disk and its free room") from None

    def close(self) -> None:
        """Remove the file and its room. No transfer may be under way. May be called again."""
        self._finalizer()


def _read_at(file: SpillFile, into: memoryview, offset: int) -> int:
    return os.preadv(file.fd, [into], offset)


def _write_at(file: SpillFile, source: memoryview, offset: int) -> int:
    return os.pwritev(file.fd, [source], offset)


def _seek_and_read(file: SpillFile, into: memoryview, offset: int) -> int:
    with file.seek_lock:
        os.lseek(file.fd, offset, os.SEEK_SET)
        piece = os.read(file.fd, min(len(into), _PIECE_NBYTES))
    into[: len(piece)] = piece
    return len(piece)


def _seek_and_write(file: SpillFile, source: memoryview, offset: int) -> int:
    with file.seek_lock:
        os.lseek(file.fd, offset, os.SEEK_SET)
        return os.write(file.fd, source[:_PIECE_NBYTES])


_HAS_POSITIONED = hasattr(os, "preadv")  # Windows has not: there the position is the file's, hence the lock
_read_some = _read_at if _HAS_POSITIONED else _seek_and_read
_write_some = _write_at if _HAS_POSITIONED else _seek_and_write


def _some(count: int, what_zero_means: str) -> int:
    """Return how many bytes a call moved: fewer than asked is continued, none at all would be so forever."""
    if count == 0:
        raise OSError(errno.EIO, what_zero_means)
    return count


def _spill_error(error: OSError, what: str, remedy: str) -> SpillError:
    reason = (error.strerror or str(error)).lower()
    return SpillError(error.errno, f"{what}: {reason}; {remedy}")


def _open(folder: Path) -> tuple[int, Path | None]:
    """Return a new private file, and its name if the system cannot do without."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _PRIVATE), None
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise  # only "this file system or kernel has no such files" goes on to a name
    path = folder / f"pagedopt-{os.getpid()}-{secrets.token_hex(8)}.spill"
    if sys.platform == "win32":
        flags = os.O_TEMPORARY | os.O_BINARY | os.O_NOINHERIT  # removed by the system with the last handle
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, _PRIVATE), None
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE)
    try:
        path.unlink()
    except OSError:  # some network file systems keep a name until the file is closed: then `_close` removes it
        return fd, path
    return fd, None


def _close(fd: int, leftover: Path | None, owner: int) -> None:
    os.close(fd)
    if leftover is not None and os.getpid() == owner:  # a forked child has its own fd, but the name is its parent's
        leftover.unlink(missing_ok=True)


def _make_direct(fd: int) -> bool:
    """Let transfers bypass the page cache, where the file system can: what it would keep counts against no budget."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return False  # uncached, but with no need of alignment
    if sys.platform == "win32" or not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        probe = new_host_buffer(DIRECT_ALIGNMENT)
        if os.pwritev(fd, [bytes_of(probe)], 0) == DIRECT_ALIGNMENT and os.preadv(fd, [bytes_of(probe)], 0):
            return True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return False


def _allocate(fd: int, offset: int, nbytes: int) -> None:
    """Take room on the disk: by the system's own call, else by writing zeros (a hole promises what is not there)."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, offset, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system has no such thing
                raise
        else:
            return
    zeros = bytes_of(new_host_buffer(_PIECE_NBYTES))  # aligned, as the file may want it
    os.lseek(fd, offset, os.SEEK_SET)
    left = nbytes
    while left:
        left -= _some(os.write(fd, zeros[: min(left, len(zeros))]), "the system takes no more bytes")
