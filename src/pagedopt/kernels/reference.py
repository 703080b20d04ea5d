"""The update in plain PyTorch: short, on any device, and the truth that every other backend must equal to the bit.

All in float32, whatever the dtypes of parameter and gradient; each line is one rounded operation at a time, from left
to right, and products and sums are never fused:

    g     = grad * GRAD_SCALE
    m     = m * BETA1 + g * ONE_MINUS_BETA1
    v     = v * BETA2 + (g * g) * ONE_MINUS_BETA2            8-bit state: v = root * root of the decoded root
    denom = sqrt(v) * DENOM_SCALE + EPS                      amsgrad: sqrt(max(v_max, v))
    u     = m / denom                                        8-bit state: held to +-UPDATE_LIMIT, NaN stays NaN
    p     = p * DECAY - u * STEP_SIZE                        rounded to nearest even in the parameter's dtype

It is torch.optim.AdamW with the scalars of a step folded (`Scalar`). 8-bit state then keeps m and sqrt(v) as
`codecs.blockwise` says. UPDATE_LIMIT is there because nearest rounding can leave a root that changes slowly stuck at
a value that is too small: 4, with bias correction, where a first step is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedopt.codecs.base import FIELDS, Per, StateFormat
from pagedopt.codecs.blockwise import Blocks, decode, encode, floored, keepable
from pagedopt.kernels import norm
from pagedopt.kernels.args import Column, Operands, Scalar


@dataclass(frozen=True, slots=True)
class _Work:
    """One segment of a page with this step's operand: views into the parameter, its gradient and the frame."""

    operand: int
    state_format: StateFormat
    blocks: Blocks
    param: Tensor
    grad: Tensor
    state: tuple[Tensor, ...]
    scalars: list[float]


class ReferenceKernel:
    """See `kernels.args.Kernel`. Transient memory grows with the largest segment of a page, and with nothing else.

    It turns gradients off itself: that mode belongs to a thread, and a page may be updated on any.
    """

    name = "reference"

    @torch.no_grad()
    def update(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        for work in _works(segments, frame, operands):
            if work.state_format is StateFormat.BLOCKWISE8:
                _update_blockwise(work)
            elif work.state_format is StateFormat.TENSORWISE8:
                _update_tensorwise(work, floored(operands.absmax[work.operand]))
            else:
                _update_float32(work)

    @torch.no_grad()
    def measure(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        for work in _works(segments, frame, operands):
            if work.state_format is StateFormat.TENSORWISE8:
                _, m, root = _advance_8bit(work)
                m, root = keepable(m, root)
                largest = torch.stack([m.abs().amax(), root.amax()])
                operands.absmax[work.operand] = torch.maximum(operands.absmax[work.operand], largest)

    def squared_norm(self, grad: Tensor) -> Tensor:
        return norm.squared_norm(grad, norm.sum_of_squares)


def _works(segments: Tensor, frame: Tensor, operands: Operands) -> list[_Work]:
    scalars = operands.scalars.tolist()
    works = []
    for row in segments.tolist():
        operand = row[Column.OPERAND]
        grad = operands.grads[operand]
        if grad is None:
            continue
        base, numel = row[Column.BASE], row[Column.NUMEL]
        state_format = StateFormat(row[Column.FORMAT])
        blocks = Blocks(row[Column.START], numel, row[Column.ROW_WIDTH])
        works.append(
            _Work(
                operand,
                state_format,
                blocks,
                operands.params[operand].view(-1)[base : base + numel],
                grad.view(-1)[base : base + numel],
                _state(frame, state_format, blocks, row),
                scalars[operands.scalar_rows[operand]],
            )
        )
    return works


def _state(frame: Tensor, state_format: StateFormat, blocks: Blocks, row: list[int]) -> tuple[Tensor, ...]:
    arrays = []
    for index, field in enumerate(FIELDS[state_format]):
        offset = row[Column.FIELD_0 + index]
        count = {Per.VALUE: blocks.numel, Per.BLOCK: len(blocks), Per.SEGMENT: 1}[field.per]
        arrays.append(frame[offset : offset + count * field.dtype.itemsize].view(field.dtype))
    return tuple(arrays)


def _update_float32(work: _Work) -> None:
    s = work.scalars
    exp_avg, exp_avg_sq, *max_exp_avg_sq = work.state
    m, v = _advance(exp_avg, exp_avg_sq, work.grad, s)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)

    for v_max in max_exp_avg_sq:
        v = torch.maximum(v_max, v, out=v_max)

    _step(work.param, m / _denom(_sqrt(v), s), s)


def _update_blockwise(work: _Work) -> None:
    u, m, root = _advance_8bit(work)
    _step(work.param, u, work.scalars)

    m, root = keepable(m, root)
    m_codes, root_codes, m_absmax, root_absmax = work.state
    m_absmax.copy_(floored(work.blocks.absmax(m)))
    root_absmax.copy_(floored(work.blocks.absmax(root)))
    m_codes.copy_(encode(m, work.blocks.spread(m_absmax), signed=True))
    root_codes.copy_(encode(root, work.blocks.spread(root_absmax), signed=False))


def _update_tensorwise(work: _Work, absmax: Tensor) -> None:
    u, m, root = _advance_8bit(work)
    _step(work.param, u, work.scalars)

    m, root = keepable(m, root)
    m_codes, root_codes, m_absmax, root_absmax = work.state
    m_absmax.copy_(absmax[0])
    root_absmax.copy_(absmax[1])
    m_codes.copy_(encode(m, m_absmax, signed=True))
    root_codes.copy_(encode(root, root_absmax, signed=False))


def _advance_8bit(work: _Work) -> tuple[Tensor, Tensor, Tensor]:
    """Return the update, and the new m and sqrt(v) as float32; the page is not changed."""
    s = work.scalars
    m_codes, root_codes, m_absmax, root_absmax = work.state
    if work.state_format is StateFormat.BLOCKWISE8:
        m_absmax, root_absmax = work.blocks.spread(m_absmax), work.blocks.spread(root_absmax)
    m = decode(m_codes, m_absmax, signed=True)
    root = decode(root_codes, root_absmax, signed=False)

    m, v = _advance(m, root * root, work.grad, s)
    root = _sqrt(v)

    limit = s[Scalar.UPDATE_LIMIT]
    return (m / _denom(root, s)).clamp_(-limit, limit), m, root


def _advance(m: Tensor, v: Tensor, grad: Tensor, s: list[float]) -> tuple[Tensor, Tensor]:
    g = grad.float() * s[Scalar.GRAD_SCALE]
    m = m * s[Scalar.BETA1] + g * s[Scalar.ONE_MINUS_BETA1]
    v = v * s[Scalar.BETA2] + (g * g) * s[Scalar.ONE_MINUS_BETA2]
    return m, v


def _denom(root: Tensor, s: list[float]) -> Tensor:
    return root * s[Scalar.DENOM_SCALE] + s[Scalar.EPS]


def _step(param: Tensor, u: Tensor, s: list[float]) -> None:
    param.copy_(param.float() * s[Scalar.DECAY] - u * s[Scalar.STEP_SIZE])


def _sqrt(v: Tensor) -> Tensor:
    """Return the correctly rounded float32 root; torch.sqrt of float32 may be one ulp off (as measured on a CPU)."""
    return v.double().sqrt_().float()
