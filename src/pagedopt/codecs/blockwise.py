"""Moments in 8 bits: a code for each value and one float32 absmax for each block of values.

    decode    value = codebook[code] * absmax
    encode    absmax = largest |value| of the block, at least FLOOR if any value is not zero
              code = nearest codebook value to |value| * (1 / absmax), with the sign of value

A value that is not zero never gets the zero code, and zero always does, so state says exactly which values were never
touched. `exp_avg` is kept in signed codes and the root of `exp_avg_sq` in unsigned ones.

Why the root: v spans twice the decades of the gradient. Inside a block whose gradients differ by 1000 times or more,
small v would become zero while their m do not, and one update m / sqrt(v) would be thousands of times too large.

Every operation here is one rounded float32 operation, in an order that the kernels share, so they give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from pagedopt.codecs.base import BLOCK
from pagedopt.codecs.codebook import BELOW_TWO, OFFSET, SMALLEST, pieces, values_by_code

FLOOR = 2.0**-100
"""The smallest absmax of a block that is not all zero: its reciprocal, and values times that, stay finite."""

MAX_ROOT = 2e19
"""What an infinite root is kept as. Its square is infinite in float32, so an overflow of v lasts, as it would in v."""

MIN_ROOT = 2.0**-74.5
"""What a root of zero is kept as where m is not zero: the root of the smallest float32."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of `numel` consecutive values of a parameter, from value `start` on, where a block begins.

    `row_width` values make a row; a block is at most 256 values of one row.
    """

    start: int
    numel: int
    row_width: int

    @property
    def is_flat(self) -> bool:
        """Whether every block but the last has 256 values."""
        return self.row_width % BLOCK == 0 or self.start % self.row_width + self.numel <= self.row_width

    def __len__(self) -> int:
        if self.is_flat:
            return -(-self.numel // BLOCK)
        return self._block(self.start + self.numel - 1) - self._block(self.start) + 1

    def absmax(self, values: Tensor) -> Tensor:
        """Return the largest |value| of each block of finite `values`."""
        size = values.abs()
        if self.is_flat:
            return pad(size, (0, -self.numel % BLOCK)).view(-1, BLOCK).amax(1)
        return size.new_zeros(len(self)).scatter_reduce_(0, self._index(size.device), size, "amax")

    def spread(self, per_block: Tensor) -> Tensor:
        """Return for each value the element of its block."""
        if self.is_flat:
            return per_block.repeat_interleave(BLOCK)[: self.numel]
        return per_block[self._index(per_block.device)]

    def _block(self, value: int) -> int:
        row, column = divmod(value, self.row_width)
        return row * -(-self.row_width // BLOCK) + column // BLOCK

    def _index(self, device: torch.device) -> Tensor:
        value = torch.arange(self.start, self.start + self.numel, device=device)
        row = value.div(self.row_width, rounding_mode="floor")
        block = row * -(-self.row_width // BLOCK) + value.sub_(row * self.row_width).div_(BLOCK, rounding_mode="floor")
        return block - self._block(self.start)


def encode_moment(values: Tensor, *, row_width: int, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the codes and absmax of one moment of a parameter.

    Args:
        values: whole rows in row-major order, any shape and dtype: `exp_avg`, or the root of `exp_avg_sq`. Infinite
            and NaN values get the zero code.
        row_width: values of a row, as the parameter's `layout.Grid` says.
        signed: whether negative values occur; the codes are then int8, else uint8.

    Returns:
        codes of the shape of `values`; absmax, float32 [rows, blocks of a row].
    """
    flat = values.reshape(-1).float()
    flat = torch.where(flat.isfinite(), flat, 0)
    blocks = Blocks(0, flat.numel(), row_width)
    absmax = floored(blocks.absmax(flat))
    codes = encode(flat, blocks.spread(absmax), signed=signed)
    return codes.view(values.shape), absmax.view(-1, -(-row_width // BLOCK))


def decode_moment(codes: Tensor, absmax: Tensor, *, row_width: int, signed: bool) -> Tensor:
    """Return the float32 values of one moment, of the shape of `codes`; the inverse of `encode_moment`."""
    scale = Blocks(0, codes.numel(), row_width).spread(absmax.reshape(-1))
    return decode(codes.reshape(-1), scale, signed=signed).view(codes.shape)


def keepable(m: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Return both moments of some values as 8 bits can keep them: finite, and no m without a root.

    - m is infinite or NaN: both are zero. The parameter is NaN already, and its block must not know.
    - m is finite and v overflowed: the update is zero from now on, as with 32-bit state.
    - m is not zero and v underflowed to zero: the root is lifted, or it would get the zero code beside an m that
      may be lifted to the smallest code of its block.
    """
    finite = m.isfinite()
    kept = torch.where(finite & (root < torch.inf), m, 0)
    root = torch.where(root.isnan(), 0, root)
    root = torch.where(kept != 0, root.clamp_min(MIN_ROOT), root)
    return kept, torch.where(finite, root.clamp_max(MAX_ROOT), 0)


def floored(absmax: Tensor) -> Tensor:
    """Return the absmax to store: zero where it is zero, else at least FLOOR."""
    return torch.where(absmax > 0, absmax.clamp_min(FLOOR), 0)


def decode(codes: Tensor, absmax: Tensor, *, signed: bool) -> Tensor:
    """Return the float32 values of `codes` in blocks of `absmax` (broadcast to them)."""
    values = values_by_code(signed=signed, device=codes.device)
    return values[codes.view(torch.uint8).int()] * absmax


def encode(values: Tensor, absmax: Tensor, *, signed: bool) -> Tensor:
    """Return the codes of finite float32 `values` in blocks of `absmax` (floored, broadcast to them): int8 or uint8."""
    p = pieces(signed=signed, device=values.device)
    x = (values.abs() * torch.where(absmax > 0, 1 / absmax, 0)).clamp_min(SMALLEST)

    piece = torch.bucketize(x, p.thresholds, right=True)
    position = (x * p.slope[piece] + OFFSET).clamp_max(BELOW_TWO)
    code = (position * p.count[piece]).int()
    code = torch.where(values < 0, -code.clamp_max(127), code) if signed else code - 1

    byte = torch.where(values == 0, 0, code & 255).to(torch.uint8)
    return byte.view(torch.int8) if signed else byte
