"""Reading a checkpoint: nothing in it is believed before it is checked, and nothing is read by pickle.

The manifest has a checksum of its own. From it follows, byte for byte, what the header of each data file must be and
how long the file is, and both are compared when the checkpoint is opened. Each tensor's checksum is compared by the
time the last of it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self
from xxhash import xxh3_128

from pagedopt.checkpoint import files
from pagedopt.checkpoint import manifest as manifests
from pagedopt.checkpoint.file_reader import FileReader
from pagedopt.checkpoint.layout import FileLayout, SavedParam, TensorShape, nbytes_of, tensors_of
from pagedopt.codecs.base import FIELDS
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import GNORM_HISTORY, GNORM_SLOTS, Entry
from pagedopt.formats.kept import Kept
from pagedopt.layout import grid_for
from pagedopt.tiers.buffers import bytes_of

_OPEN_ATTEMPTS = 8
"""Times that opening starts over because a save replaced the checkpoint meanwhile."""


class SavedTensor:
    """One tensor of an open checkpoint, which hashes its bytes as they are first read, in order."""

    def __init__(
        self, path: Path, file: FileReader, offset: int, tensor: TensorShape, label: str, checksum: str
    ) -> None:
        self._path, self._file, self._offset = path, file, offset
        self._tensor, self._label, self._checksum = tensor, label, checksum
        self.restart()

    def restart(self) -> None:
        """Hash from the start again: the tensor is read a second time."""
        self._hasher, self._hashed = xxh3_128(), 0

    def fill(self, start: int, stop: int, into: Tensor) -> None:
        """Fill a flat tensor of any device with the elements [start, stop).

        Raises:
            CheckpointError: they cannot be read.
        """
        if start == stop:
            return
        host = into if into.device.type == "cpu" else torch.empty(into.shape, dtype=into.dtype, device="cpu")
        target, done = bytes_of(host), 0
        for view in self._views(start * into.itemsize, len(target)):
            target[done : done + len(view)] = view
            done += len(view)
        if host is not into:
            into.copy_(host)

    def check(self, advance: Callable[[int], None] = lambda _: None) -> None:
        """Read what was not read yet, and compare the checksum.

        Raises:
            CheckpointError: it differs.
        """
        for view in self._views(self._hashed, self._tensor.nbytes - self._hashed):
            advance(len(view))
        if self._hasher.hexdigest() != self._checksum:
            raise CheckpointError(
                f"{self._path}: {self._label}.{self._tensor.key} is damaged: its checksum differs from the manifest's"
            )

    def _views(self, start: int, nbytes: int) -> Iterator[memoryview]:
        try:
            for view in self._file.views(self._offset + start, nbytes):
                stop = start + len(view)
                if start <= self._hashed < stop:
                    self._hasher.update(view[self._hashed - start :])
                    self._hashed = stop
                start = stop
                yield view
        except OSError as error:
            raise _unreadable(self._path, error) from error


class Checkpoint:
    """An open checkpoint whose manifest, file sizes and headers are in order. A context manager.

    A checkpoint that is replaced while it is open goes on to be readable, where the system lets open files be removed.
    """

    def __init__(
        self, folder: Path, manifest: manifests.Manifest, layouts: list[FileLayout], readers: list[FileReader]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._readers = readers
        self._tensors = {
            (param.id, tensor.key): SavedTensor(
                folder / manifest.files[param.file],
                readers[param.file],
                layouts[param.file].offsets[param.id, tensor.key],
                tensor,
                param.label,
                manifest.checksums[param.id, tensor.key],
            )
            for param in manifest.params
            for tensor in tensors_of(param.shape, param.state_format, has_gnorms=param.has_gnorms)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._readers:
            self._readers.pop().close()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(nbytes_of, self.manifest.params))

    def state_dict(self) -> dict[str, Any]:
        """Return what `PagedOptimizer.replace_state` takes, with `SavedParam`s as entries."""
        return {
            "state": {param.id: param for param in self.manifest.params},
            "param_groups": self.manifest.groups,
        }

    def entry(
        self, param: SavedParam, shape: tuple[int, ...], advance: Callable[[int], None] = lambda _: None
    ) -> Entry:
        """Return the entry of a parameter of `shape`.

        Raises:
            CheckpointError: it was saved with another shape, or its norms are damaged.
        """
        if param.shape != shape:
            raise CheckpointError(f"it was saved with shape {param.shape}, the parameter has {shape}")
        bits = "8-bit" if param.state_format.is_8bit else "32-bit"
        return Entry(
            source=f"a checkpoint's {bits}",
            step=param.step,
            is_8bit=param.state_format.is_8bit,
            open=lambda: self.reader(param, advance),
            gnorms=self._gnorms(param),
        )

    def reader(self, param: SavedParam, advance: Callable[[int], None] = lambda _: None) -> Kept:
        """Return a reader of the moments of a parameter, which compares checksums when it is finished."""
        tensors = [self._tensors[param.id, field.name] for field in FIELDS[param.state_format]]
        for tensor in tensors:
            tensor.restart()

        def fill(index: int, start: int, stop: int, into: Tensor) -> None:
            tensors[index].fill(start, stop, into)

        def finish() -> None:
            for tensor in tensors:
                tensor.check()
            advance(nbytes_of(param))

        return Kept(param.state_format, grid_for(param.shape, param.state_format), fill, finish)

    def _gnorms(self, param: SavedParam) -> Tensor | None:
        if not param.has_gnorms:
            return None
        saved, norms = self._tensors[param.id, GNORM_HISTORY], torch.empty(GNORM_SLOTS, device="cpu")
        saved.restart()
        saved.fill(0, GNORM_SLOTS, norms)
        saved.check()
        return norms

    def verify(self, advance: Callable[[int], None] = lambda _: None) -> None:
        """Read everything and compare every checksum.

        Raises:
            CheckpointError: naming the first file and tensor that is damaged.
        """
        for line in self.damage(advance):
            raise CheckpointError(line)

    def damage(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[str]:
        """Read everything and yield what is wrong with it, a line for each damaged tensor."""
        for tensor in self._tensors.values():
            wrong = _wrong(tensor, advance)
            if wrong is not None:
                yield wrong


def _wrong(tensor: SavedTensor, advance: Callable[[int], None]) -> str | None:
    tensor.restart()
    try:
        tensor.check(advance)
    except CheckpointError as error:
        return str(error)
    return None


def read_manifest(folder: Path) -> manifests.Manifest:
    """Return the manifest of the checkpoint in `folder`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return _decode(folder, _read_manifest(folder))


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open the checkpoint in the folder `path`.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names the file and the reason.
    """
    with ExitStack() as stack:
        yield stack.enter_context(_open(path))


def _open(folder: Path) -> Checkpoint:
    raw = _read_manifest(folder)
    for _ in range(_OPEN_ATTEMPTS):
        opened = _open_as(folder, raw)
        if isinstance(opened, Checkpoint):
            return opened
        before, raw = raw, _read_manifest(folder)
        if raw == before:
            raise CheckpointError(f"{opened} is missing")
    raise CheckpointError(f"{folder} is being replaced faster than it can be opened")


def _read_manifest(folder: Path) -> bytes:
    path = folder / manifests.NAME
    try:
        fd = files.open_regular(path)
        try:
            nbytes = files.size(fd)
            if nbytes > manifests.MAX_NBYTES:
                raise CheckpointError(f"{path} has {nbytes} bytes, more than any manifest")
            raw = bytearray(nbytes)
            files.read(fd, memoryview(raw), 0)
        finally:
            files.close_read(fd, path)
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_file():
            raise CheckpointError(
                f"{folder} is a file, and a checkpoint is a folder; a file of torch.save is for load_state_dict, and "
                "pagedopt convert makes a checkpoint of it"
            ) from None
        raise CheckpointError(f"{folder} is no checkpoint: it has no {manifests.NAME}") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    return bytes(raw)


def _decode(folder: Path, raw: bytes) -> manifests.Manifest:
    try:
        return manifests.decode(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / manifests.NAME}: {error}") from None


def _open_as(folder: Path, raw: bytes) -> Checkpoint | Path:
    """Open the checkpoint of the manifest `raw`, or return a file of it that is gone."""
    manifest = _decode(folder, raw)
    layouts = manifest.layouts()
    with ExitStack() as opened:
        readers = []
        for name, layout in zip(manifest.files, layouts, strict=True):
            reader = _reader(folder / name)
            if reader is None:
                return folder / name
            readers.append(opened.enter_context(closing(reader)))
            _check_start(folder / name, reader, layout)
        checkpoint = Checkpoint(folder, manifest, layouts, readers)
        opened.pop_all()
    return checkpoint


def _reader(path: Path) -> FileReader | None:
    try:
        return FileReader(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_start(path: Path, reader: FileReader, layout: FileLayout) -> None:
    """Refuse a data file whose length and header are not what the manifest says."""
    if reader.nbytes != layout.nbytes:
        raise CheckpointError(f"{path} has {reader.nbytes} bytes, and the manifest says {layout.nbytes}")
    try:
        header = b"".join(reader.views(0, len(layout.header)))
    except OSError as error:
        raise _unreadable(path, error) from error
    if header != layout.header:
        raise CheckpointError(f"{path} is damaged, or another checkpoint's: its header is not the manifest's")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}")
