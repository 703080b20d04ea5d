"""The 8-bit dynamic codebook: 256 values for a moment divided by its absmax, dense where values are large.

Seven decades, each one linear piece with twice the values of the decade below, and 0 and 1:

    value(i, k) = 10^(i-6) * (0.1 + 0.9 * (k + 1/2) / n_i)      i = 0..6,  k = 0 .. n_i - 1

    signed    n_i = 2^i        and their negatives      exp_avg
    unsigned  n_i = 2^(i+1)                             sqrt(exp_avg_sq)

These are the values of the published 8-bit dynamic tree quantization (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", 2022). Sorted positions of the signed ones, less 127 and wrapped to a byte, are the signed codes: 0 is
zero, 1..127 and -1..-127 are mirror images, and -128, where 128 wraps to, is +1. There is no -1. Unsigned codes are
sorted positions. In both the zero byte is zero.

Because a decade is linear, decoding and encoding are arithmetic, and every backend does the same float32 arithmetic, so
they all give the same bits.

Decode: the value of a code (signed: of its size) in decade i is a fused multiply-add, which rounds once:

    value = step[i] * (code + BIAS) + base[i]

code + BIAS passes a power of two where a decade begins, so its exponent tells i. The constants were searched for: with
them every value is within one ulp of the formula.

Encode: `piece` is how many of `thresholds` are at most x = |moment| / absmax; then, each operation rounded,

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

_BIAS = {True: 41 / 64, False: 1 + 75 / 512}
_STEP = {
    True: (8.999999e-07, 4.4999997e-06, 2.25e-05, 0.0001125, 0.00056250003, 0.0028125, 0.0140625),
    False: (4.5e-07, 2.2499999e-06, 1.125e-05, 5.625e-05, 0.00028125, 0.00140625, 0.00703125),
}
_BASE = {
    True: (-9.265624e-07, -8.632812e-06, -8.3164065e-05, -0.0008158203, -0.008079102, -0.08039551, -0.8019775),
    False: (-6.4091796e-07, -7.204589e-06, -7.602295e-05, -0.00078011473, -0.007900573, -0.07950287, -0.7975143),
}
"""By `signed`. Each number is the shortest decimal of a float32."""


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
    """Return the values above zero in rising order, 1 last."""
    values = []
    for decade in range(NUM_DECADES):
        step, base = _float32(_STEP[signed][decade]), _float32(_BASE[signed][decade])
        n = _count(decade, signed)
        first = n if signed else n - 1
        values += [_float32(step * (code + _BIAS[signed]) + base) for code in range(first, first + n)]
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
