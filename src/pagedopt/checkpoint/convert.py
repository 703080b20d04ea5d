"""`convert`: a checkpoint or a state dict in a file, of any format known here, to another, a few values at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedopt.checkpoint.export import Entries, as_bitsandbytes, as_torch
from pagedopt.checkpoint.reading import open_checkpoint
from pagedopt.checkpoint.state_file import read_state_file, write_state_file
from pagedopt.checkpoint.writing import ParamSource, Pieces, write_checkpoint
from pagedopt.codecs.base import BLOCK, FIELDS, StateFormat
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import PIECE, Entry
from pagedopt.formats.kept import Recoded
from pagedopt.formats.recognise import recognise, shape_of
from pagedopt.layout import Span, grid_for
from pagedopt.optim.adamw import AdamW
from pagedopt.optim.arguments import HYPERPARAMETERS, MIN_8BIT_SIZE, check_hyperparameters
from pagedopt.optim.snapshots import mapped_in

TARGETS = ("torch", "bitsandbytes", "pagedopt")

_DEFAULTS = {name: signature(AdamW).parameters[name].default for name in HYPERPARAMETERS}

_IN_RAM_NBYTES = 1 << 30
"""State dicts up to this size are made in RAM, larger ones in mapped files beside the result."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What is to be converted.

    Attributes:
        groups: parameter groups, as in a state dict.
        entries: shape and checked entry of each parameter by its number.
    """

    groups: list[dict[str, Any]]
    entries: Entries


def convert(
    source: Path,
    target: Path,
    to: str,
    *,
    bits: int | None = None,
    min_8bit_size: int = MIN_8BIT_SIZE,
    wrapped: bool = False,
    unchecked: bool = False,
) -> int:
    """Convert `source`, a folder that `save` wrote or a file of torch's, to `target`; return the number of parameters.

    `"pagedopt"` makes a folder, the others a file for `torch.load`. Memory is that of a few million values,
    whatever the size; a large state dict is put together in mapped files beside `target`, which take its size of disk.

    Args:
        source: read with no pickle, or with torch's `weights_only`.
        target: replaced in one step when all of it is written.
        to: `"torch"`, `"bitsandbytes"` or `"pagedopt"`.
        bits: 8 or 32 bits for each moment; None: as in `source`. torch's is always 32.
        min_8bit_size: with `bits=8`, parameters with fewer values have 32-bit state.
        wrapped: bitsandbytes only: as 0.49.2 and later write it.
        unchecked: convert what is in a file of torch's that is damaged, or has no checksums that could tell.

    Raises:
        CheckpointError: `source` is damaged or of no known format, or `target` cannot be written.
    """
    with open_source(source, unchecked=unchecked) as opened:
        if to == "pagedopt":
            write_checkpoint(target, opened.groups, _param_sources(opened, bits, min_8bit_size))
            return len(opened.entries)
        empty = _allocator(opened.entries, target)
        if to == "torch":
            converted = as_torch(opened.groups, opened.entries, empty)
        else:
            converted = as_bitsandbytes(
                opened.groups, opened.entries, empty, bits=bits, min_8bit_size=min_8bit_size, wrapped=wrapped
            )
        write_state_file(converted, target)
        return len(opened.entries)


def open_source(path: Path, *, unchecked: bool = False) -> AbstractContextManager[Source]:
    """Open a checkpoint folder or a state dict in a file; an `unchecked` file's checksums are not compared.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    if path.is_dir():
        return _checkpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    return nullcontext(_state_dict(path, unchecked=unchecked))


@contextmanager
def _checkpoint(path: Path) -> Iterator[Source]:
    with open_checkpoint(path) as checkpoint:
        entries = {
            param.id: (param.shape, checkpoint.entry(param, param.shape)) for param in checkpoint.manifest.params
        }
        yield Source(checkpoint.manifest.groups, entries)


def _state_dict(path: Path, *, unchecked: bool) -> Source:
    loaded = read_state_file(path, unchecked=unchecked)
    if not isinstance(loaded["state"], Mapping):
        raise CheckpointError(f"{path}: its 'state' is a {type(loaded['state']).__name__}, not a dict by parameter")
    try:
        groups = _groups(loaded["param_groups"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its 'param_groups' are none of an AdamW: {error}") from error
    numbers = {number for group in groups for number in group["params"]}
    entries: Entries = {}
    for number, entry in loaded["state"].items():
        if number not in numbers:
            raise CheckpointError(f"{path}: the state of {number!r} belongs to no parameter of its groups")
        try:
            shape = shape_of(entry)
            entries[number] = shape, recognise(entry, shape)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: the state of parameter {number} cannot be read: {error}") from error
    return Source(groups, entries)


def _groups(saved: Any) -> list[dict[str, Any]]:
    """Return groups checked, with hyperparameters that they lack as `load_state_dict` fills them in."""
    if not isinstance(saved, Sequence) or not all(isinstance(group, Mapping) for group in saved):
        raise TypeError(f"they must be a list of dicts, got {saved!r:.80}")
    groups = [{**_DEFAULTS, **group} for group in saved]
    for group in groups:
        params = group.get("params")
        if not isinstance(params, list) or not all(isinstance(number, int) for number in params):
            raise TypeError(f"the params of a group must be a list of numbers, got {params!r:.80}")
        group.update(check_hyperparameters(group))
    return groups


def _allocator(entries: Entries, target: Path) -> Callable[..., Tensor]:
    nbytes = sum(8 * math.prod(shape) for shape, _ in entries.values())
    return torch.empty if nbytes <= _IN_RAM_NBYTES else mapped_in(target.parent)


def _param_sources(source: Source, bits: int | None, min_8bit_size: int) -> list[ParamSource]:
    amsgrads = {number: bool(group.get("amsgrad")) for group in source.groups for number in group["params"]}
    sources = []
    for number, (shape, entry) in source.entries.items():
        is_8bit = entry.is_8bit if bits is None else bits == 8 and math.prod(shape) >= min_8bit_size
        plain = StateFormat.FLOAT32_AMSGRAD if amsgrads[number] else StateFormat.FLOAT32
        state_format = StateFormat.BLOCKWISE8 if is_8bit else plain
        pieces = _pieces(shape, entry, state_format)
        sources.append(ParamSource(number, shape, state_format, entry.step, entry.gnorms, pieces))
    return sources


def _pieces(shape: tuple[int, ...], entry: Entry, state_format: StateFormat) -> Callable[[], Pieces]:
    """Return what opens the arrays of an entry, in pieces of a few hundred thousand values."""

    def pieces() -> Iterator[tuple[Span, dict[int, Tensor]]]:
        reader, grid = entry.open(), grid_for(shape, state_format)
        recoded = Recoded(reader, state_format, grid)
        for first in range(0, grid.num_blocks, PIECE // BLOCK):
            span = grid.span(first, min(first + PIECE // BLOCK, grid.num_blocks))
            arrays = {
                index: torch.empty(span.count(field.per), dtype=field.dtype)
                for index, field in enumerate(FIELDS[state_format])
            }
            recoded.fill(span, arrays)
            yield span, arrays
        reader.finish()

    return lambda: nullcontext(pieces())
