"""torch.optim.AdamW's and Adam's entries, read and written; our 32-bit ones and torchao's have the same keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pagedopt.codecs.base import FIELDS, StateFormat
from pagedopt.formats.entry import (
    GNORM_HISTORY,
    PIECE,
    Entry,
    Reader,
    Values,
    check_keys,
    gnorms_of,
    step_of,
    values_of,
)
from pagedopt.formats.kept import Kept
from pagedopt.layout import grid_for

_MOMENTS = tuple(field.name for field in FIELDS[StateFormat.FLOAT32_AMSGRAD])
_KEYS = ("step", *_MOMENTS, GNORM_HISTORY)


def is_torch_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether the moments are kept as values under torch's names."""
    return "exp_avg" in entry or "exp_avg_sq" in entry


def read_torch(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry of float moments, or of torchao's quantized tensors, of the parameter's shape."""
    check_keys(entry, _KEYS)
    names = [name for name in _MOMENTS if name in entry or name != "max_exp_avg_sq"]
    tensors = [values_of(entry, name, shape) for name in names]
    quantized = [type(tensor).__name__ for tensor in tensors if _is_quantized(tensor)]

    def values() -> Reader:
        return Values(*((_dequantized(tensor)).reshape(-1) for tensor in tensors))

    def exact() -> Reader:
        state_format = StateFormat.FLOAT32_AMSGRAD if len(tensors) == 3 else StateFormat.FLOAT32
        return Kept.in_memory(state_format, grid_for(shape, state_format), dict(enumerate(tensors)))

    is_float32 = not quantized and all(tensor.dtype == torch.float32 for tensor in tensors)
    return Entry(
        source=f"torchao's {quantized[0]}" if quantized else "32-bit",
        step=step_of(entry),
        is_8bit=bool(quantized),
        open=exact if is_float32 else values,
        gnorms=gnorms_of(entry),
    )


def _is_quantized(tensor: Tensor) -> bool:
    """Return whether this is one of torchao's tensors of codes, which know how to become values."""
    return type(tensor).dequantize is not Tensor.dequantize


def _dequantized(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if _is_quantized(tensor) else tensor


def write_torch(
    reader: Reader, step: float, shape: tuple[int, ...], *, amsgrad: bool, empty: Callable[..., Tensor]
) -> dict[str, Any]:
    """Return an entry that torch.optim.AdamW loads: float32 moments of the parameter's shape, `step` a tensor.

    It has `max_exp_avg_sq` with `amsgrad`. `empty` allocates a tensor, as `torch.empty`.
    """
    names = _MOMENTS if amsgrad else _MOMENTS[:2]
    arrays = {name: empty(shape, dtype=torch.float32, device="cpu") for name in names}
    numel = arrays["exp_avg"].numel()
    for start in range(0, numel, PIECE):
        stop = min(start + PIECE, numel)
        moments = reader.moments(start, stop)
        for name, array in arrays.items():
            values = getattr(moments, name)
            array.view(-1)[start:stop] = moments.exp_avg_sq if values is None else values
    reader.finish()
    return {"step": torch.tensor(step, dtype=torch.float32), **arrays}
