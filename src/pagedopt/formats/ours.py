"""pagedopt's own 8-bit entries: `step`, the arrays of a format by name, and `gnorm_history` with percentile clipping.

Our 32-bit entries have torch's keys and are read as torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pagedopt.codecs.base import FIELDS, Per, StateFormat
from pagedopt.formats.entry import GNORM_HISTORY, Entry, check_keys, gnorms_of, step_of, tensor_of, values_of
from pagedopt.formats.kept import Kept
from pagedopt.layout import Grid, grid_for

_KEYS = ("step", *(field.name for field in FIELDS[StateFormat.BLOCKWISE8]), GNORM_HISTORY)


def is_8bit_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether this is 8-bit state of ours."""
    return "exp_avg_absmax" in entry or "exp_avg_sq_absmax" in entry


def read_8bit(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry of our 8-bit state; block-wise and tensor-wise differ in the shape of their absmax."""
    check_keys(entry, _KEYS)
    state_format = StateFormat.BLOCKWISE8
    absmax = entry.get("exp_avg_absmax")
    grid = grid_for(shape, state_format)
    if isinstance(absmax, Tensor) and absmax.numel() == 1 and grid.num_blocks != 1:
        state_format = StateFormat.TENSORWISE8
        grid = grid_for(shape, state_format)
    arrays = {index: _array(entry, state_format, index, shape, grid) for index in range(len(FIELDS[state_format]))}
    return Entry(
        source="pagedopt 8-bit",
        step=step_of(entry),
        is_8bit=True,
        open=lambda: Kept.in_memory(state_format, grid, arrays),
        gnorms=gnorms_of(entry),
    )


def _array(
    entry: Mapping[str, Any], state_format: StateFormat, index: int, shape: tuple[int, ...], grid: Grid
) -> Tensor:
    field = FIELDS[state_format][index]
    if field.per is Per.VALUE:
        return values_of(entry, field.name, shape, field.dtype)
    return tensor_of(entry, field.name, grid.num_blocks if field.per is Per.BLOCK else 1, field.dtype)
