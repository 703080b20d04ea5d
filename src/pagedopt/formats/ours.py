"""pagedopt's own entries: `step`, the arrays of a format by name, and `gnorm_history` with percentile clipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pagedopt.codecs.base import FIELDS, Per, StateFormat
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import Entry, from_arrays, grid_for, step_of, tensor_of
from pagedopt.layout import Grid

GNORM_HISTORY = "gnorm_history"
GNORM_SLOTS = 100


def is_8bit_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether this is 8-bit state of ours."""
    return "exp_avg_absmax" in entry


def read_8bit(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry of our 8-bit state; block-wise and tensor-wise differ in the shape of their absmax."""
    state_format = StateFormat.BLOCKWISE8
    absmax = entry["exp_avg_absmax"]
    grid = grid_for(shape, state_format)
    if isinstance(absmax, Tensor) and absmax.numel() == 1 and grid.num_blocks != 1:
        state_format = StateFormat.TENSORWISE8
        grid = grid_for(shape, state_format)
    arrays = {index: _array(entry, state_format, index, shape, grid) for index in range(len(FIELDS[state_format]))}
    return Entry(
        source="pagedopt 8-bit",
        step=step_of(entry),
        is_8bit=True,
        moments=lambda: from_arrays(arrays, state_format, grid),
        exact=(state_format, arrays),
        gnorms=gnorms_of(entry),
    )


def _array(
    entry: Mapping[str, Any], state_format: StateFormat, index: int, shape: tuple[int, ...], grid: Grid
) -> Tensor:
    field = FIELDS[state_format][index]
    count = {Per.VALUE: grid.numel, Per.BLOCK: grid.num_blocks, Per.SEGMENT: 1}[field.per]
    array = tensor_of(entry, field.name, count, field.dtype)
    if field.per is Per.VALUE and tuple(array.shape) != shape:
        raise CheckpointError(f"{field.name} has shape {tuple(array.shape)}, the parameter {shape}")
    return array.to("cpu").contiguous()


def gnorms_of(entry: Mapping[str, Any]) -> Tensor | None:
    """Return percentile clipping's squared norms, under our name or bitsandbytes'."""
    for key in (GNORM_HISTORY, "gnorm_vec"):
        if key in entry:
            return tensor_of(entry, key, GNORM_SLOTS).to("cpu", torch.float32, copy=True).view(-1)
    return None
