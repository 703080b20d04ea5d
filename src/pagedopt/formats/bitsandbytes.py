"""bitsandbytes' entries, flat and wrapped: 32-bit, 8-bit block-wise with any block size, 8-bit tensor-wise.

Codes are positions in a sorted codebook that the entry carries; the second moment is kept itself, not its root.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.codecs.blockwise import Blocks, encode, floored
from pagedopt.codecs.codebook import sorted_values
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import (
    PIECE,
    Entry,
    Moments,
    Reader,
    Values,
    as_float32,
    check_keys,
    gnorms_of,
    step_of,
    tensor_of,
    values_of,
)
from pagedopt.formats.kept import Kept

WRAPPER = "__bnb_optimizer_quant_state__"
"""Since 0.49.2 all but `step` is inside one dict under this key."""

BLOCK = 256
"""Values of a block since 0.44.0, running over the flattened parameter."""

_ZERO = 127
"""Position of zero in the signed codebook. A signed code here is its position less this, wrapped to a byte."""

_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)

_GNORMS = "gnorm_vec"
_KEYS_32BIT = ("step", "state1", "state2", _GNORMS, "unorm_vec")
_KEYS_8BIT = (
    *_KEYS_32BIT,
    *(f"{name}{moment}" for name in ("qmap", "absmax", "max", "new_max") for moment in "12"),
)


def is_bitsandbytes_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether this is an entry of a bitsandbytes optimizer."""
    return "state1" in entry or "state2" in entry or WRAPPER in entry


def read_bitsandbytes(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry."""
    wrapped = entry.get(WRAPPER, {})
    if not isinstance(wrapped, Mapping):
        raise CheckpointError(f"{WRAPPER} must be a dict, got {type(wrapped).__name__}")
    flat = {**{key: value for key, value in entry.items() if key != WRAPPER}, **wrapped}
    state1 = flat.get("state1")
    if isinstance(state1, Tensor) and state1.dtype == torch.uint8:
        return _read_8bit(flat, shape)
    check_keys(flat, _KEYS_32BIT)
    first, second = values_of(flat, "state1", shape), values_of(flat, "state2", shape)
    return Entry(
        source="bitsandbytes 32-bit",
        step=step_of(flat),
        is_8bit=False,
        open=lambda: Values(first.reshape(-1), second.reshape(-1)),
        gnorms=gnorms_of(flat, _GNORMS),
    )


@dataclass(frozen=True, slots=True)
class _Coded:
    """One moment: codes in the parameter's row-major order, the codebook, and the scale of every block of values."""

    codes: Tensor
    codebook: Tensor
    scales: Tensor
    block_size: int

    def decode(self, start: int, stop: int) -> Tensor:
        values = self.codebook[self.codes[start:stop].to("cpu", torch.int64)]
        block = torch.arange(start, stop, device="cpu").div_(self.block_size, rounding_mode="floor")
        return values.mul_(self.scales[block])


@dataclass(frozen=True, slots=True)
class _Codes:
    """A reader of both moments."""

    first: _Coded
    second: _Coded

    def moments(self, start: int, stop: int) -> Moments:
        return Moments(self.first.decode(start, stop), self.second.decode(start, stop))

    def finish(self) -> None:
        """Codes in memory are what they are."""


def _read_8bit(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    check_keys(entry, _KEYS_8BIT)
    numel = math.prod(shape)
    parts = []
    for moment in "12":
        codes = values_of(entry, f"state{moment}", shape, torch.uint8)
        codebook = tensor_of(entry, f"qmap{moment}", 256)
        scales = _scales(entry, moment)
        parts.append((codes, codebook, scales, _block_size(numel, scales.numel())))
    return Entry(
        source="bitsandbytes 8-bit",
        step=step_of(entry),
        is_8bit=True,
        open=lambda: _Codes(*(_Coded(c.reshape(-1), as_float32(q), as_float32(s), b) for c, q, s, b in parts)),
        gnorms=gnorms_of(entry, _GNORMS),
    )


def _scales(entry: Mapping[str, Any], moment: str) -> Tensor:
    """Return the absmax of every block, or the one of a tensor-wise entry."""
    key = f"absmax{moment}" if f"absmax{moment}" in entry else f"max{moment}"
    scales = entry.get(key)
    if not isinstance(scales, Tensor) or not scales.is_floating_point():
        raise CheckpointError(f"absmax{moment} must be a tensor of floats, got {scales!r}")
    return scales.detach().reshape(-1)


def _block_size(numel: int, num_blocks: int) -> int:
    """Return the block size: 256 since 0.44, 2048 before; for two blocks or more only one power of two fits."""
    if num_blocks == 1 or numel == 0:
        return max(numel, 1)
    for size in _BLOCK_SIZES:
        if -(-numel // size) == num_blocks:
            return size
    raise CheckpointError(f"{num_blocks} absmax do not belong to {numel} values with any block size from 64 to 8192")


def write_bitsandbytes(
    reader: Reader,
    step: float,
    shape: tuple[int, ...],
    *,
    is_8bit: bool,
    wrapped: bool,
    gnorms: Tensor | None,
    empty: Callable[..., Tensor],
) -> dict[str, Any]:
    """Return an entry that bitsandbytes' AdamW classes load.

    8-bit state is block-wise: flat blocks of 256. A second moment that is not zero never gets the zero code, beside
    which its first moment would make an update thousands of times too large.

    `wrapped` is how 0.49.2 and later write it; the flat layout is read by every version. `empty` allocates a tensor, as
    `torch.empty`.
    """
    state = _empty_state(shape, is_8bit, empty)
    numel = state["state1"].numel()
    for start in range(0, numel, PIECE):  # a multiple of the block
        stop = min(start + PIECE, numel)
        first_block, stop_block = start // BLOCK, -(-stop // BLOCK)
        moments = reader.moments(start, stop)
        for moment, values in (("1", moments.exp_avg), ("2", moments.exp_avg_sq)):
            into = state[f"state{moment}"].view(-1)[start:stop]
            if is_8bit:
                _encode(values, into, state[f"absmax{moment}"][first_block:stop_block], signed=moment == "1")
            else:
                into.copy_(values)
        if is_8bit and _has_same_blocks(reader):
            # rounding a second time would lose what the first has left
            reader.fill(0, start, stop, (codes := torch.empty(stop - start, dtype=torch.int8)))
            reader.fill(2, first_block, stop_block, state["absmax1"][first_block:stop_block])
            state["state1"].view(-1)[start:stop] = codes.view(torch.uint8) + _ZERO
    reader.finish()
    if gnorms is not None:
        state[_GNORMS] = gnorms.clone()
    return {"step": int(step), **({WRAPPER: state} if wrapped else state)}


def _empty_state(shape: tuple[int, ...], is_8bit: bool, empty: Callable[..., Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    num_blocks = -(-math.prod(shape) // BLOCK)
    for moment in "12":
        state[f"state{moment}"] = empty(shape, dtype=torch.uint8 if is_8bit else torch.float32, device="cpu")
        if is_8bit:
            state[f"qmap{moment}"] = sorted_values(signed=moment == "1")
            state[f"absmax{moment}"] = empty((num_blocks,), dtype=torch.float32, device="cpu")
    return state


def _has_same_blocks(reader: Reader) -> TypeGuard[Kept]:
    """Return whether these are codes of ours in blocks that no row cuts short: then the first moment is the same."""
    if not isinstance(reader, Kept) or reader.state_format is not StateFormat.BLOCKWISE8:
        return False
    return reader.grid.row_width % BLOCK == 0 or reader.grid.num_rows <= 1


def _encode(values: Tensor, codes: Tensor, scales: Tensor, *, signed: bool) -> None:
    """Fill codes and absmax of some whole blocks. A value that is not finite is kept as zero."""
    values = torch.where(values.isfinite(), values, 0)
    blocks = Blocks(0, values.numel(), max(values.numel(), 1))
    absmax = floored(blocks.absmax(values))
    scales.copy_(absmax)
    position = encode(values, blocks.spread(absmax), signed=signed).view(torch.uint8)
    codes.copy_(position + _ZERO if signed else position)
