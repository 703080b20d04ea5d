"""The page-level calling convention: all that one kernel call needs to update every segment of a page.

    segments   int64 [num_segments, len(Column)]    on the CPU, fixed when the page is laid out
    operands   what this step brings: parameters, gradients, and the scalars each is updated with
    frame      uint8 [page_nbytes]                  the page's state, updated in place

A backend may keep what it makes of a segment table for as long as that lives, by its identity, and what it makes of
operands in them.

A segment names its parameter by `Column.OPERAND`, the position of that parameter in `operands`. A parameter of a
hundred pages is one operand, so a step costs Python per parameter and not per page. A kernel passes over a segment
whose operand has no gradient in this step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor


class Column(IntEnum):
    """A row of the segment table: values counted in the parameter's row-major order, offsets in bytes of the frame."""

    OPERAND = 0
    """position of the parameter in the operands"""
    START = 1
    """first value of the segment in its parameter: with ROW_WIDTH it fixes where blocks begin"""
    NUMEL = 2
    """values in the segment; at least 1"""
    ROW_WIDTH = 3
    """values of a row; a block is at most 256 consecutive values of one row"""
    FORMAT = 4
    """a `StateFormat`"""
    FIELD_0 = 5
    """offset of exp_avg (float32 or signed codes)"""
    FIELD_1 = 6
    """offset of exp_avg_sq (float32 or unsigned codes of its root)"""
    FIELD_2 = 7
    """offset of max_exp_avg_sq (amsgrad) or of exp_avg_absmax (8-bit)"""
    FIELD_3 = 8
    """offset of exp_avg_sq_absmax (8-bit)"""
    BASE = 9
    """index of the segment's first value in its operand's tensors: START, or 0 where the operand is a staged copy"""


class Scalar(IntEnum):
    """A row of `Operands.scalars` (float32), folded once on the host in float64: t is the parameter's step."""

    BETA1 = 0
    ONE_MINUS_BETA1 = 1
    BETA2 = 2
    ONE_MINUS_BETA2 = 3
    EPS = 4
    DECAY = 5
    """1 - lr * weight_decay"""
    STEP_SIZE = 6
    """lr / (1 - beta1^t)"""
    DENOM_SCALE = 7
    """1 / sqrt(1 - beta2^t)"""
    GRAD_SCALE = 8
    """what a gradient is multiplied by: percentile clipping's scale, negative to maximize, else 1"""
    UPDATE_LIMIT = 9
    """8-bit state only: |m / denom| is held to this, 4 * (1 - beta1^t)"""


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """One step's parameters, gradients and scalars, by operand.

    Attributes:
        params: contiguous tensors of any shape, float32, bfloat16 or float16; updated in place.
        grads: contiguous tensors of the same numel and any of those dtypes; None: no update in this step.
        scalar_rows: row of `scalars` for each operand.
        scalars: float32 [rows, len(Scalar)], on the CPU.
        absmax: float32 [num_operands, 2], on the parameters' device. For tensor-wise 8-bit state: `Kernel.measure`
            raises it to the largest finite |m| and sqrt(v) of the whole parameter, `Kernel.update` encodes with it.
        derived: what a backend makes of the operands once, at the first page of the step, under its own name.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor | None]
    scalar_rows: Sequence[int]
    scalars: Tensor
    absmax: Tensor
    derived: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


class Kernel(Protocol):
    """One fused update. Laws: it gives the bits of `kernels.reference` (or its named tolerance); it changes nothing but
    the segments' parameters and arrays; the number of threads never changes a bit.
    """

    @property
    def name(self) -> str:
        """`reference`, `native` or `triton`."""
        ...

    def update(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        """Decode, update and encode every segment of a page in place."""
        ...

    def measure(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        """Raise `operands.absmax` to what the tensor-wise segments of this page will need; the page is not changed."""
        ...

    def squared_norm(self, grad: Tensor) -> Tensor:
        """Return the sum of squares of `grad` (any shape and strides) as a 0-d float32 tensor on its device."""
        ...


def new_absmax(num_operands: int, device: torch.device) -> Tensor:
    """Return the zeros that `Kernel.measure` raises."""
    return torch.zeros(num_operands, 2, dtype=torch.float32, device=device)
