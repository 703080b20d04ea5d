"""Whose entry is it? Told by its keys and element types, never by the class that asks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pagedopt.errors import CheckpointError
from pagedopt.formats.bitsandbytes import WRAPPER, is_bitsandbytes_entry, read_bitsandbytes
from pagedopt.formats.entry import Entry
from pagedopt.formats.flash import QUANTIZED, is_flash_entry, read_flash
from pagedopt.formats.ours import is_8bit_entry, read_8bit
from pagedopt.formats.torch_adamw import is_torch_entry, read_torch

_READERS = (
    (is_bitsandbytes_entry, read_bitsandbytes),
    (is_8bit_entry, read_8bit),
    (is_flash_entry, read_flash),
    (is_torch_entry, read_torch),
)


def shape_of(entry: object) -> tuple[int, ...]:
    """Return the shape of the parameter that an entry belongs to, as its first moment says.

    Raises:
        CheckpointError: it has no first moment.
    """
    if isinstance(entry, Mapping):
        wrapped = entry.get(WRAPPER)
        flat = {**entry, **wrapped} if isinstance(wrapped, Mapping) else entry
        for key in ("exp_avg", "state1", f"exp_avg{QUANTIZED}"):
            if isinstance(flat.get(key), Tensor):
                return tuple(flat[key].shape)
    raise CheckpointError(f"no AdamW state that is known here: {_keys(entry)}")


def recognise(entry: object, shape: tuple[int, ...]) -> Entry:
    """Return the entry of a parameter of `shape`, checked.

    Raises:
        CheckpointError: no known optimizer's, or one that does not fit the parameter.
    """
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"an entry must be a dict, got {type(entry).__name__}")
    for is_theirs, read in _READERS:
        if is_theirs(entry):
            return read(entry, shape)
    raise CheckpointError(f"no AdamW state that is known here: {_keys(entry)}")


def _keys(entry: object) -> str:
    if not isinstance(entry, Mapping):
        return f"it is a {type(entry).__name__}"
    return f"it has {', '.join(sorted(map(repr, entry))) or 'no keys'}"
