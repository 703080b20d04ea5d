"""Values [start, stop) of a tensor of any strides, in row-major order, without copying the rest of it.

A channels-last, transposed or sliced parameter is not flat. A run of its values is at most `2 * ndim - 1` views,
which a segment's update copies into contiguous memory and back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def is_flat(tensor: Tensor) -> bool:
    """Return whether the values of `tensor` lie in memory one after the other, so that a kernel needs an address only.

    The memory of a negative view, such as the imaginary part of a conjugate, has the other sign.
    """
    return tensor.is_contiguous() and not tensor.is_neg()


def has_shared_values(tensor: Tensor) -> bool:
    """Return whether `tensor` is expanded, so that several of its values are one in memory."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def pieces(tensor: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Yield views of `tensor` that hold, one after the other, its row-major values [start, stop)."""
    if start >= stop:
        return
    if tensor.dim() <= 1:
        yield tensor.reshape(1) if tensor.dim() == 0 else tensor[start:stop]
        return
    row_numel = tensor.numel() // tensor.shape[0]
    first, last = -(-start // row_numel), stop // row_numel  # whole rows, half open
    if first > last:  # within one row
        yield from pieces(tensor[last], start - last * row_numel, stop - last * row_numel)
        return
    if start < first * row_numel:
        yield from pieces(tensor[first - 1], start - (first - 1) * row_numel, row_numel)
    if first < last:
        yield tensor[first:last]
    yield from pieces(tensor[last], 0, stop - last * row_numel) if stop > last * row_numel else ()


def gather(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return values [start, stop) of `tensor` as a new contiguous 1-dimensional tensor."""
    out = torch.empty(stop - start, dtype=tensor.dtype, device=tensor.device)
    offset = 0
    for piece in pieces(tensor, start, stop):
        out[offset : offset + piece.numel()].view(piece.shape).copy_(piece)
        offset += piece.numel()
    return out


def scatter(values: Tensor, tensor: Tensor, start: int) -> None:
    """Write contiguous 1-dimensional `values` over values [start, start + len(values)) of `tensor`, in place."""
    offset = 0
    for piece in pieces(tensor, start, start + values.numel()):
        piece.copy_(values[offset : offset + piece.numel()].view(piece.shape))
        offset += piece.numel()
