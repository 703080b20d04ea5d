"""The 8-bit dynamic codebook: 256 values for a moment divided by its absmax, dense where values are large.

Seven decades, each one linear piece with twice the values of the decade below, and 0 and 1:

    value(i, k) = 10^(i-6) * (0.1 + 0.9 * (k + 1/2) / n_i)      i = 0..6,  k = 0 .. n_i - 1

    signed    n_i = 2^i        and their negatives      exp_avg
    unsigned  n_i = 2^(i+1)                             sqrt(exp_avg_sq)

These are the values of the published 8-bit dynamic tree quantization (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", 2022). Sorted positions of the signed ones, less 127 and wrapped to a byte, are the signed codes: 0 is
zero, 1..127 and -1..-127 are mirror images, and -128, where 128 wraps to, is +1. There is no -1. Unsigned codes are
sorted positions. In both the zero byte is zero.

Because a decade is linear, decoding and encoding are arithmetic, and every backend does the same float32 arithmetic,
so they all give the same bits. A value is the float32 edge of its decade, 10^(i-7), plus k + 1/2 float32 steps,
rounded once (a fused multiply-add); that is within one ulp of the formula. For a code, `piece` is how many `thresholds`
are at most x; then, with a rounded product and a rounded sum,

    position = min(max(x, SMALLEST) * slope[piece] + OFFSET, BELOW_TWO)      1 .. 2 from end to end of the piece
    code     = int(position * count[piece]) - (0 if signed else 1)

It is the nearest code but for x within a few float32 roundings (1e-5 of a step) of a midpoint.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NUM_DECADES = 7
NUM_PIECES = NUM_DECADES + 1
"""The decades, and a last piece for 1."""

SMALLEST = 2.0**-22
"""What is less is encoded as this, which has code 1 in both codebooks."""

OFFSET = 8 / 9
BELOW_TWO = 2 - 2.0**-23


@dataclass(frozen=True, slots=True)
class Pieces:
    """The constants of the encoder, by piece.

    Attributes:
        thresholds: float32 [NUM_PIECES - 1]: the midpoint between the last value of a piece and the first of the next.
        slope: float32 [NUM_PIECES].
        count: float32 [NUM_PIECES]: how many values the piece has.
    """

    thresholds: Tensor
    slope: Tensor
    count: Tensor


def values_by_code(*, signed: bool, device: torch.device | None = None) -> Tensor:
    """Return the 256 float32 values at the positions `code & 255`. Do not write to it: it is shared."""
    return _values_by_code(signed, device or torch.device("cpu"))


def sorted_values(*, signed: bool) -> Tensor:
    """Return the 256 float32 values in rising order, which is how other formats store and index a codebook."""
    return values_by_code(signed=signed).sort().values


def pieces(*, signed: bool, device: torch.device | None = None) -> Pieces:
    """Return the encoder's constants. Do not write to them: they are shared."""
    return _pieces(signed, device or torch.device("cpu"))


def _positive_values(signed: bool) -> list[float]:
    """Return the values above zero in rising order, 1 last. Each is exact in float64, to be rounded once."""
    values = []
    for decade in range(NUM_DECADES):
        n, power = _count(decade, signed), 10 ** (6 - decade)
        edge, step = _float32(1 / (10 * power)), _float32(9 / (10 * n * power))
        values += [_float32(edge + step * (k + 0.5)) for k in range(n)]
    return [*values, 1.0]


def _float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def _count(decade: int, signed: bool) -> int:
    return 1 << (decade if signed else decade + 1)


@lru_cache
def _values_by_code(signed: bool, device: torch.device) -> Tensor:
    positive = _positive_values(signed)
    negative = [-value for value in positive[-2::-1]] if signed else []
    return torch.tensor([0.0, *positive, *negative], dtype=torch.float32, device=device)


@lru_cache
def _pieces(signed: bool, device: torch.device) -> Pieces:
    def constant(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=device)

    values = _positive_values(signed)
    counts = [_count(decade, signed) for decade in range(NUM_PIECES)]
    firsts = [sum(counts[:piece]) for piece in range(1, NUM_PIECES)]
    thresholds = [(values[first - 1] + values[first]) / 2 for first in firsts]
    slopes = [10 * 10 ** (6 - decade) / 9 for decade in range(NUM_DECADES)]
    # In the last piece all x from its threshold to a little over 1 have the first position.
    return Pieces(constant(thresholds), constant([*slopes, 0.1125]), constant([float(count) for count in counts]))
