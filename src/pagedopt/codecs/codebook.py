"""The 8-bit dynamic codebook: 256 values for a moment divided by its absmax, dense where values are large.

Seven decades, each one linear piece with twice the values of the decade below, and 0 and 1:

    value(i, k) = 10^(i-6) * (0.1 + 0.9 * (k + 1/2) / n_i)      i = 0..6,  k = 0 .. n_i - 1

    signed    n_i = 2^i        and their negatives      exp_avg
    unsigned  n_i = 2^(i+1)                             sqrt(exp_avg_sq)

These are the values of the published 8-bit dynamic tree quantization (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", 2022). Sorted positions of the signed ones, less 127 and wrapped to a byte, are the signed codes: 0 is
zero, 1..127 and -1..-127 are mirror images, and -128, where 128 wraps to, is +1. There is no -1. Unsigned codes are
sorted positions. In both the zero byte is zero.

Because a decade is linear, the nearest code is arithmetic, and every backend does the same float32 arithmetic, so they
all give the same bits: `piece` is how many `thresholds` are at most x, then

    code = min(int(x * slope[piece] + offset[piece]), last[piece])

with a rounded product and a rounded sum (no fused multiply-add). It is the nearest code but for x within a few float32
roundings (1e-5 of a step) of a midpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NUM_DECADES = 7
NUM_PIECES = NUM_DECADES + 1
"""The decades, and a last piece for 1."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The constants of the encoder, by piece.

    Attributes:
        thresholds: float32 [NUM_PIECES - 1]: the midpoint between the last value of a piece and the first of the next.
        slope, offset: float32 [NUM_PIECES].
        last: int32 [NUM_PIECES]: the largest code of the piece.
    """

    thresholds: Tensor
    slope: Tensor
    offset: Tensor
    last: Tensor


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
    """Return the values above zero in rising order, 1 last: one quotient of whole numbers each, so exactly rounded."""
    values = []
    for decade in range(NUM_DECADES):
        n = _count(decade, signed)
        values += [(2 * n + 9 * (2 * k + 1)) / (20 * n * 10 ** (6 - decade)) for k in range(n)]
    return [*values, 1.0]


def _count(decade: int, signed: bool) -> int:
    return 1 << (decade if signed else decade + 1)


@lru_cache
def _values_by_code(signed: bool, device: torch.device) -> Tensor:
    positive = _positive_values(signed)
    negative = [-value for value in positive[-2::-1]] if signed else []
    return torch.tensor([0.0, *positive, *negative], dtype=torch.float32, device=device)


@lru_cache
def _pieces(signed: bool, device: torch.device) -> Pieces:
    values = values_by_code(signed=signed).tolist()
    thresholds, last = [], [0]
    slope, offset = [], []
    for decade in range(NUM_DECADES):
        n, first = _count(decade, signed), last[-1] + 1
        last.append(last[-1] + n)
        thresholds.append((values[last[-1]] + values[last[-1] + 1]) / 2)
        slope.append(10 * n * 10 ** (6 - decade) / 9)
        offset.append(first - n / 9)
    # The first piece begins at zero, so that what is not zero gets code 1 at least. 5.5e-7 is its one inner midpoint.
    slope[0], offset[0] = (0.0 if signed else 1 / 5.5e-7), 1.0

    def constant(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=device)

    one = last[-1] + 1
    return Pieces(
        constant(thresholds),
        constant([*slope, 0.0]),
        constant([*offset, float(one)]),
        torch.tensor([*last[1:], one], dtype=torch.int32, device=device),
    )
