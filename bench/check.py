"""Is an optimizer's result right? A float64 AdamW on some of the values says what it should be.

    q = q * (1 - lr * weight_decay) - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

(Loshchilov and Hutter 2019, algorithm 2.) The error of a result p is |p - q| / |q - start|, root mean squares over the
sample: 0.01 is an update that is a hundredth too long, or points a hundredth of its length aside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from bench.measure import Verdict
from bench.workload import GRAD_SCALES, Workload

LR = 1e-2
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 2.0
"""Ten times a usual step and hundred times a usual decay: then a bfloat16 parameter can show the step, and the update
is a fifth decay, so that an optimizer which forgets it is caught."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A named limit of the error."""

    name: str
    limit: float

    def verdict(self, error: float) -> Verdict:
        return Verdict(error, self.limit, self.name)


FLOAT32 = Tolerance("float32 rounding", 1e-5)
"""A step rounds a parameter by half an ulp, 4e-9 at 0.1, where the update is 1e-2, and the update itself in its few
operations: 4e-7 in all, as measured. The limit leaves room for another order of operations and for fast roots."""

BFLOAT16 = Tolerance("bfloat16 rounding", 0.04)
"""A step rounds a parameter by half an ulp, 2.4e-4 at 0.1: 1.6 % of the update as measured, and 2.3 % where every
operation rounds (torch foreach)."""

CODES8 = Tolerance("8-bit codes", 0.03)
"""Codes of the uppermost decade, where most values lie, are 0.7 % (unsigned) and 1.4 % (signed) of absmax apart: about
1 % of a typical value's update, which is what every 8-bit optimizer here shows. The limit is three times that."""

CODES8_BFLOAT16 = Tolerance("8-bit codes and bfloat16 rounding", 0.05)
"""The root of the sum of squares of both."""


def tolerance_for(*, is_8bit: bool, dtype: torch.dtype) -> Tolerance:
    """Return the tolerance of an optimizer with 8-bit or full state for parameters of `dtype`."""
    if dtype is torch.float32:
        return CODES8 if is_8bit else FLOAT32
    return CODES8_BFLOAT16 if is_8bit else BFLOAT16


class Oracle:
    """AdamW in float64."""

    def __init__(self, params: Tensor) -> None:
        self.params = params.clone()
        self._m = torch.zeros_like(params)
        self._v = torch.zeros_like(params)
        self._t = 0

    def step(self, grad: Tensor) -> None:
        self._t += 1
        self._m = BETAS[0] * self._m + (1 - BETAS[0]) * grad
        self._v = BETAS[1] * self._v + (1 - BETAS[1]) * grad * grad

        m_hat = self._m / (1 - BETAS[0] ** self._t)
        v_hat = self._v / (1 - BETAS[1] ** self._t)
        self.params = self.params * (1 - LR * WEIGHT_DECAY) - LR * m_hat / (v_hat.sqrt() + EPS)


def check(optimizer: Optimizer, workload: Workload, tolerance: Tolerance) -> Verdict:
    """Step `optimizer` with four gradients and compare; the last one stays, for the steps that are timed."""
    start = workload.sample_params()
    oracle = Oracle(start)
    for step in range(len(GRAD_SCALES)):
        workload.draw_gradients(step)
        optimizer.step()
        oracle.step(workload.sample_gradients())
    error = (workload.sample_params() - oracle.params).norm() / (oracle.params - start).norm()
    return tolerance.verdict(error.item())
