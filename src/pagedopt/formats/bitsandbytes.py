"""bitsandbytes' entries: 32-bit, 8-bit block-wise with any block size, 8-bit tensor-wise; flat and wrapped.

Codes are positions in a sorted codebook that the entry carries; the second moment is kept itself, not its root.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import Entry, Moments, as_float32, step_of, tensor_of, values_of
from pagedopt.formats.ours import gnorms_of

WRAPPER = "__bnb_optimizer_quant_state__"
"""Since 0.49.2 all but `step` is inside one dict under this key."""

_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


def is_bitsandbytes_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether this is an entry of a bitsandbytes optimizer with two moments."""
    return "state1" in entry or WRAPPER in entry


def read_bitsandbytes(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry."""
    wrapped = entry.get(WRAPPER, {})
    if not isinstance(wrapped, Mapping):
        raise CheckpointError(f"{WRAPPER} must be a dict, got {type(wrapped).__name__}")
    flat = {**entry, **wrapped}
    state1 = flat.get("state1")
    if isinstance(state1, Tensor) and state1.dtype == torch.uint8:
        return _read_8bit(flat, shape)
    first, second = values_of(flat, "state1", shape), values_of(flat, "state2", shape)
    return Entry(
        source="bitsandbytes 32-bit",
        step=step_of(flat),
        is_8bit=False,
        moments=lambda: Moments(as_float32(first), as_float32(second)),
        gnorms=gnorms_of(flat),
    )


def _read_8bit(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    numel = math.prod(shape)
    decoders = []
    for moment in ("1", "2"):
        codes = tensor_of(entry, f"state{moment}", numel, torch.uint8)
        codebook = tensor_of(entry, f"qmap{moment}", 256)
        scales = _scales(entry, moment)
        decoders.append((codes, codebook, scales, _block_size(numel, scales.numel())))
    return Entry(
        source="bitsandbytes 8-bit",
        step=step_of(entry),
        is_8bit=True,
        moments=lambda: Moments(*(_decode(*decoder) for decoder in decoders)),
        gnorms=gnorms_of(entry),
    )


def _scales(entry: Mapping[str, Any], moment: str) -> Tensor:
    """Return the absmax of every block, or the one of a tensor-wise entry."""
    key = f"absmax{moment}" if f"absmax{moment}" in entry else f"max{moment}"
    scales = entry.get(key)
    if not isinstance(scales, Tensor) or not scales.is_floating_point() or not scales.numel():
        raise CheckpointError(f"absmax{moment} must be a tensor of floats, got {scales!r}")
    return scales.detach().reshape(-1)


def _block_size(numel: int, num_blocks: int) -> int:
    """Return the block size: 256 since 0.44, 2048 before; for two blocks or more only one power of two fits."""
    if num_blocks == 1:
        return max(numel, 1)
    for size in _BLOCK_SIZES:
        if -(-numel // size) == num_blocks:
            return size
    raise CheckpointError(f"{num_blocks} absmax do not belong to {numel} values with any block size from 64 to 8192")


def _decode(codes: Tensor, codebook: Tensor, scales: Tensor, block_size: int) -> Tensor:
    values = as_float32(codebook)[codes.to("cpu").reshape(-1).to(torch.int64)]
    full = values.numel() // block_size
    scales = as_float32(scales)
    values[: full * block_size].view(full, block_size).mul_(scales[:full, None])
    values[full * block_size :].mul_(scales[full:])
    return values
