"""Which bytes of which file are which tensor: safetensors files, laid out from the parameters alone.

    8 bytes             the header's length, little endian
    header              JSON: tensor name -> dtype, shape, data_offsets; padded with spaces
    data                the tensors, one after the other, no gaps

Anyone's safetensors library reads these files. We write them ourselves because it wants every tensor of a file in
memory at once, and read them ourselves because it maps them, so that a disk error would be a signal and not an
exception. Saving and loading compute the same layout from the manifest, so a header is compared and never interpreted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pagedopt.codecs.base import FIELDS, Per, StateFormat
from pagedopt.formats.entry import GNORM_HISTORY, GNORM_SLOTS
from pagedopt.layout import grid_for

_DTYPES = {torch.float32: "F32", torch.int8: "I8", torch.uint8: "U8"}
_HEADER_ALIGNMENT = 64
_METADATA = {"format": "pt", "written_by": "pagedopt"}


@dataclass(frozen=True, slots=True)
class SavedParam:
    """One parameter's state, as the manifest has it.

    Attributes:
        id: its number in `param_groups`.
        label: what its tensors' names begin with: its name, else its number.
        step: updates made so far.
        has_gnorms: whether there are percentile clipping's norms.
        file: the position of its file.
    """

    id: int
    label: str
    shape: tuple[int, ...]
    state_format: StateFormat
    step: float
    has_gnorms: bool
    file: int


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor of a parameter: `key` is its name in `optimizer.state[p]`."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def tensors_of(shape: tuple[int, ...], state_format: StateFormat, *, has_gnorms: bool) -> list[TensorShape]:
    """Return the tensors that are kept for a parameter: the arrays of its format in their order, and norms."""
    grid = grid_for(shape, state_format)
    shapes = {Per.VALUE: shape, Per.BLOCK: (grid.num_rows, grid.blocks_per_row), Per.SEGMENT: (1, 1)}
    tensors = [TensorShape(field.name, field.dtype, shapes[field.per]) for field in FIELDS[state_format]]
    return [*tensors, TensorShape(GNORM_HISTORY, torch.float32, (GNORM_SLOTS,))] if has_gnorms else tensors


def nbytes_of(param: SavedParam) -> int:
    """Return the bytes of a parameter's tensors."""
    tensors = tensors_of(param.shape, param.state_format, has_gnorms=param.has_gnorms)
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One data file.

    Attributes:
        header: its first bytes, the length included.
        offsets: byte of the file at which each tensor starts, by parameter and key.
        nbytes: of the whole file.
    """

    header: bytes
    offsets: dict[tuple[int, str], int]
    nbytes: int


def lay_out(params: Sequence[SavedParam]) -> FileLayout:
    """Return the layout of the file of these parameters."""
    entries: dict[str, object] = {"__metadata__": _METADATA}
    starts: dict[tuple[int, str], int] = {}
    end = 0
    for param in params:
        for tensor in tensors_of(param.shape, param.state_format, has_gnorms=param.has_gnorms):
            starts[param.id, tensor.key] = end
            entries[f"{param.label}.{tensor.key}"] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [end, end := end + tensor.nbytes],
            }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return FileLayout(header, {key: len(header) + start for key, start in starts.items()}, len(header) + end)


def spread_over_files(params: Sequence[tuple[int, int]], max_file_nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield `(parameter, file)` for `(parameter, bytes)`: in order, a new file where one would get too large."""
    file, used = 0, 0
    for param, nbytes in params:
        if used and used + nbytes > max_file_nbytes:
            file, used = file + 1, 0
        used += nbytes
        yield param, file
