"""The zip archive that `torch.save` writes: what is damaged in it.

torch keeps a CRC-32 with each record, and its reader compares it with nothing: a tensor whose bytes changed on a disk
or in a copy loads as other numbers. Here it is compared, in one pass over the file that keeps a chunk in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from pagedopt.checkpoint import files
from pagedopt.errors import CheckpointError

_SIGNATURE = b"PK\x03\x04"
_PICKLE = b"\x80"
_CHUNK = 1 << 20


class Archive:
    """An open archive of `torch.save`."""

    def __init__(self, path: Path, opened: ZipFile) -> None:
        self._path, self._opened = path, opened
        self._records = opened.infolist()

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return sum(record.file_size for record in self._records)

    @property
    def is_stored(self) -> bool:
        """Whether no record is compressed, so that all can be mapped into memory."""
        return all(record.compress_type == ZIP_STORED for record in self._records)

    @property
    def has_checksums(self) -> bool:
        """Whether there is anything to compare: after `torch.serialization.set_crc32_options(False)` all are zero."""
        return any(record.CRC for record in self._records)

    def damage(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[str]:
        """Read every record, and yield a line for each that is not what was saved."""
        for record in self._records:
            wrong = self._wrong(record, advance)
            if wrong is not None:
                yield f"{self._path}: its record {record.filename!r} is damaged: {wrong}"

    def _wrong(self, record: ZipInfo, advance: Callable[[int], None]) -> str | None:
        """Read a record to its end, where zipfile compares the CRC-32, and return what is wrong with it."""
        try:
            with self._opened.open(record) as file:
                while chunk := file.read(_CHUNK):
                    advance(len(chunk))
        except Exception as error:  # noqa: BLE001 - what zipfile raises that is fed with damaged bytes can be anything
            return _reason(error)
        return None


def is_archive(path: Path) -> bool:
    """Return whether a file of `torch.save` is an archive, or of the format from before torch 1.6.

    Raises:
        CheckpointError: it is neither, by how it begins, which is what torch goes by.
        OSError: it cannot be read.
    """
    fd = files.open_regular(path)
    try:
        start = bytearray(min(len(_SIGNATURE), files.size(fd)))
        files.read(fd, memoryview(start), 0)
    finally:
        files.close_read(fd, path)
    if start == _SIGNATURE:
        return True
    if not start.startswith(_PICKLE):
        raise CheckpointError(f"{path} is no file of torch.save{'' if start else ': it is empty'}")
    return False


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive of `torch.save`.

    Raises:
        CheckpointError: its list of records is gone or damaged, as in a file that was cut short.
    """
    try:
        opened = ZipFile(path)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{path} is damaged: the list of records at its end cannot be read, as in a file that was cut short: "
            f"{_reason(error)}"
        ) from error
    with opened:
        yield Archive(path, opened)


def _reason(error: Exception) -> str:
    """Return what an error says, in a line that goes on after a colon."""
    said = str(error).strip().splitlines()
    return said[0][:1].lower() + said[0][1:] if said else type(error).__name__
