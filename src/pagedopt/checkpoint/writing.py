"""Writing a checkpoint so that a crash at any moment leaves the old one or the new one, whole.

The checkpoint is what the manifest names. A save never touches a file that the manifest names:

1. write the data files under names that no save used before, and sync each: their bytes are on the disk
2. sync the folder: their names are on the disk, before anything refers to them
3. write the new manifest under a name of its own, and sync it: half a manifest never has the real name
4. rename it over the old manifest: the one moment at which the checkpoint becomes the new one
5. sync the folder: the rename is on the disk, so what only the old manifest named can go
6. remove the files of the old checkpoint

A save that dies leaves files that no manifest names; the next save of this folder removes them, if no other process
saves there at the same time.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor
from xxhash import xxh3_128

from pagedopt.checkpoint import files
from pagedopt.checkpoint import manifest as manifests
from pagedopt.checkpoint.file_writer import FileWriter
from pagedopt.checkpoint.layout import FileLayout, SavedParam, lay_out, nbytes_of, spread_over_files, tensors_of
from pagedopt.checkpoint.manifest import Manifest
from pagedopt.checkpoint.progress import progress
from pagedopt.codecs.base import CODEC_VERSION, FIELDS, StateFormat
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import GNORM_HISTORY
from pagedopt.layout import Span
from pagedopt.tiers.buffers import bytes_of

MAX_FILE_NBYTES = 4 << 30
"""A data file is not begun larger than this, so that file systems and hubs with a limit take it."""

Pieces = AbstractContextManager[Iterator[tuple[Span, dict[int, Tensor]]]]
"""Spans of a parameter in order, each with its part of every array by index in `FIELDS`, flat."""


@dataclass(frozen=True, slots=True, eq=False)
class ParamSource:
    """The state of one parameter that is to be saved.

    Attributes:
        id: its number in the groups.
        pieces: opens the iterator over its arrays.
    """

    id: int
    shape: tuple[int, ...]
    state_format: StateFormat
    step: float
    gnorms: Tensor | None
    pieces: Callable[[], Pieces]


def write_checkpoint(
    path: Path,
    groups: list[dict[str, Any]],
    sources: Sequence[ParamSource],
    *,
    max_file_nbytes: int = MAX_FILE_NBYTES,
    show_progress: bool | None = None,
) -> None:
    """Write a checkpoint to the folder `path`, in the place of one that is there.

    Raises:
        CheckpointError: it could not be written; the one that was there is as it was.
    """
    save = _Save(path, groups, sources, max_file_nbytes)
    try:
        save.run(show_progress)
    except OSError as error:
        raise CheckpointError(f"cannot save to {path}: {_reason(error)}; {save.what_is_left}") from error


def _reason(error: OSError) -> str:
    where = f" ({Path(error.filename).name})" if isinstance(error.filename, str) else ""
    return f"{(error.strerror or str(error)).lower()}{where}"


class _Save:
    """One save, and what it has done so far."""

    def __init__(
        self, path: Path, groups: list[dict[str, Any]], sources: Sequence[ParamSource], max_file_nbytes: int
    ) -> None:
        self._folder = path
        self._id = secrets.token_hex(8)
        self._sources = {source.id: source for source in sources}
        self._params = _saved_params(groups, sources, max_file_nbytes)
        self._groups = groups
        num_files = max((param.file for param in self._params), default=-1) + 1
        self._files = [manifests.data_file_name(self._id, index) for index in range(num_files)]
        self._checksums: dict[tuple[int, str], str] = {}
        self._staged = path / f".{manifests.NAME}.{self._id}"
        self.what_is_left = "nothing was changed there"
        self._manifest(dict.fromkeys(self._all_keys(), ""))  # refuses what it cannot keep before anything is written

    def run(self, show_progress: bool | None) -> None:
        made = files.make_folder(self._folder)
        try:
            with closing(files.FolderLock(self._folder)) as lock:
                self._replace(lock, show_progress)
        except BaseException:
            files.remove_folders(made)
            raise

    def _replace(self, lock: files.FolderLock, show_progress: bool | None) -> None:
        before = self._files_before()
        try:
            self._write_data(show_progress)
            files.sync_folder(self._folder)
            self._write_manifest()
        except BaseException:
            self._remove([*self._files, self._staged.name])
            raise
        self.what_is_left = "the old checkpoint is there, or the new one in its place; which, only loading tells"
        files.replace(self._staged, self._folder / manifests.NAME)
        files.sync_folder(self._folder)
        self._remove(self._leftovers() if lock.is_alone() else before)

    def _all_keys(self) -> Iterator[tuple[int, str]]:
        for param in self._params:
            for tensor in tensors_of(param.shape, param.state_format, has_gnorms=param.has_gnorms):
                yield param.id, tensor.key

    def _manifest(self, checksums: dict[tuple[int, str], str]) -> bytes:
        return manifests.encode(
            Manifest(_written_by(), CODEC_VERSION, self._groups, self._files, self._params, checksums)
        )

    def _write_data(self, show_progress: bool | None) -> None:
        total = sum(map(nbytes_of, self._params))
        with progress(f"saving to {self._folder}", total, is_shown=show_progress) as advance:
            for index, name in enumerate(self._files):
                params = [param for param in self._params if param.file == index]
                layout = lay_out(params)
                with closing(FileWriter(self._folder / name, layout.nbytes)) as writer:
                    writer.write(0, memoryview(layout.header))
                    for param in params:
                        self._write_param(writer, layout, param)
                        advance(nbytes_of(param))
                    writer.finish()

    def _write_param(self, writer: FileWriter, layout: FileLayout, param: SavedParam) -> None:
        source, fields = self._sources[param.id], FIELDS[param.state_format]
        hashers = [xxh3_128() for _ in fields]
        done = [0] * len(fields)
        with source.pieces() as pieces:
            for span, arrays in pieces:
                for index, array in arrays.items():
                    start, stop = span.bounds(fields[index].per)
                    if start != done[index] or start == stop:  # the one absmax of a tensor is in each of its pages
                        continue
                    data = bytes_of(array.to("cpu").contiguous())
                    hashers[index].update(data)
                    writer.write(layout.offsets[param.id, fields[index].name] + start * array.itemsize, data)
                    done[index] = stop
        if not math.prod(param.shape):  # it has no page, and so nothing that gives its one absmax, which is zero
            self._write_zeros(writer, layout, param, hashers)
        for field, hasher in zip(fields, hashers, strict=True):
            self._checksums[param.id, field.name] = hasher.hexdigest()
        if source.gnorms is not None:
            data = bytes_of(source.gnorms)
            writer.write(layout.offsets[param.id, GNORM_HISTORY], data)
            self._checksums[param.id, GNORM_HISTORY] = xxh3_128(data).hexdigest()

    @staticmethod
    def _write_zeros(writer: FileWriter, layout: FileLayout, param: SavedParam, hashers: list[xxh3_128]) -> None:
        for tensor, hasher in zip(tensors_of(param.shape, param.state_format, has_gnorms=False), hashers, strict=True):
            zeros = bytes(tensor.nbytes)
            hasher.update(zeros)
            writer.write(layout.offsets[param.id, tensor.key], memoryview(zeros))

    def _write_manifest(self) -> None:
        raw = self._manifest(self._checksums)
        fd = files.create(self._staged)
        try:
            files.write(fd, memoryview(raw), 0)
            files.sync(fd)
        finally:
            files.close(fd)

    # -- tidying up ----------------------------------------------------------------------------------------------------

    def _files_before(self) -> list[str]:
        """Return the files of the checkpoint that is there; none that can be known if it is damaged."""
        path = self._folder / manifests.NAME
        try:
            fd = files.open_regular(path)
        except FileNotFoundError:
            return []
        try:
            raw = bytearray(min(files.size(fd), manifests.MAX_NBYTES))
            files.read(fd, memoryview(raw), 0)
            return manifests.decode(bytes(raw)).files
        except CheckpointError:  # it is being replaced: that it cannot be read is what its loading would say
            return []
        finally:
            files.close_read(fd, path)

    def _leftovers(self) -> list[str]:
        staged = f".{manifests.NAME}."
        return [
            name
            for name in files.names(self._folder)
            if name not in self._files and (manifests.is_data_file(name) or name.startswith(staged))
        ]

    def _remove(self, names: Sequence[str]) -> None:
        """Remove files that belong to no checkpoint. One that stays is no harm but its room, and is said."""
        for name in names:
            try:
                files.remove(self._folder / name)
            except OSError as error:  # noqa: PERF203 - each is removed on its own
                warnings.warn(f"{self._folder / name} is of no use and could not be removed: {error}", stacklevel=6)


def _written_by() -> str:
    try:
        return f"pagedopt {version('pagedopt')}"
    except PackageNotFoundError:  # run from a source tree
        return "pagedopt"


def _saved_params(
    groups: list[dict[str, Any]], sources: Sequence[ParamSource], max_file_nbytes: int
) -> list[SavedParam]:
    labels = manifests.labels_of(groups)

    def saved(source: ParamSource, file: int) -> SavedParam:
        has_gnorms = source.gnorms is not None
        return SavedParam(
            source.id, labels[source.id], source.shape, source.state_format, source.step, has_gnorms, file
        )

    sizes = [(position, nbytes_of(saved(source, 0))) for position, source in enumerate(sources)]
    return [saved(sources[position], file) for position, file in spread_over_files(sizes, max_file_nbytes)]
