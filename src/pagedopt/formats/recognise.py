"""Whose entry is it? Told by its keys and element types, never by the class that asks."""

from __future__ import annotations

from collections.abc import Mapping

from pagedopt.errors import CheckpointError
from pagedopt.formats.bitsandbytes import is_bitsandbytes_entry, read_bitsandbytes
from pagedopt.formats.entry import Entry
from pagedopt.formats.flash import is_flash_entry, read_flash
from pagedopt.formats.ours import is_8bit_entry, read_8bit
from pagedopt.formats.torch_adamw import is_torch_entry, read_torch

_READERS = (
    (is_bitsandbytes_entry, read_bitsandbytes),
    (is_8bit_entry, read_8bit),
    (is_flash_entry, read_flash),
    (is_torch_entry, read_torch),
)


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
    keys = ", ".join(sorted(map(repr, entry))) or "no keys"
    raise CheckpointError(f"no AdamW state that is known here: it has {keys}")
