"""The sum of squares of a gradient, the same to the bit whatever adds it up.

A gradient is a run of values in memory, cut into chunks of 16 rows of 2048 values; a last, short chunk is filled up
with zeros. Squares of float32 are exact in float64. The rows of a chunk are added one after the other, then the 2048
sums are folded in halves (the first half plus the second) down to one, and so are the sums of the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

ROWS, LANES = 16, 2048
CHUNK = ROWS * LANES
_BATCH = 16 * CHUNK
"""Values squared at a time: 4 MiB of float64."""


def runs(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the values of `tensor` as flat contiguous tensors: itself in memory order if it is dense, else copies of
    at most a chunk.
    """
    strides = tensor.stride()
    tensor = tensor.permute(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))
    if tensor.is_contiguous() or tensor.numel() <= CHUNK:
        yield tensor.contiguous().view(-1)
        return
    for part in tensor if tensor.dim() > 1 else torch.split(tensor, CHUNK):
        yield from runs(part)


def squared_norm(tensor: Tensor, sum_of_squares: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sum of squares of `tensor` as a 0-d float32 tensor; `sum_of_squares` gives a run's in float64."""
    sums = [sum_of_squares(run) for run in runs(tensor) if run.numel()]
    return fold(torch.stack(sums)).float() if sums else tensor.new_zeros((), dtype=torch.float32)


def sum_of_squares(run: Tensor) -> Tensor:
    """Return the sum of squares of a flat tensor, 0-d float64."""
    return fold(torch.cat([_batch_sums(batch) for batch in torch.split(run, _BATCH)]))


def _batch_sums(values: Tensor) -> Tensor:
    squares = pad(values, (0, -values.numel() % CHUNK)).double().square_().view(-1, ROWS, LANES)
    total = squares[:, 0]
    for row in range(1, ROWS):
        total = total + squares[:, row]
    return fold(total.T)


def fold(sums: Tensor) -> Tensor:
    """Return the sum over the first dimension: the first half plus the second, until one is left."""
    size = 1 << (len(sums) - 1).bit_length()
    sums = torch.cat([sums, sums.new_zeros(size - len(sums), *sums.shape[1:])])
    while size > 1:
        size //= 2
        sums = sums[:size] + sums[size : 2 * size]
    return sums[0]
