"""The numbers of a step, folded once per (source, step, scale) on the host in float64: `Scalar` is what they mean.

The update is Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW` has it:

    theta_t = theta_{t-1} - lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * theta_{t-1})
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pagedopt.kernels.args import Scalar
from pagedopt.optim.arguments import betas_of, number
from pagedopt.optim.plan import Source

UPDATE_LIMIT = 4.0
"""8-bit state: no update is larger than this times lr.

Adam's first update is lr, whatever the gradient. Nearest rounding can hold a small sqrt(v) too low for as long as each
step's growth is under half a code; without a limit the update would then grow with the gradient, without a bound.
"""


class ScalarTable:
    """The rows that one step's operands share: usually one a source."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []
        self._row_of: dict[tuple[int, float, float], int] = {}
        self._numbers: dict[int, tuple[object, float]] = {}  # by identity, which the value kept beside it keeps its own

    def row(self, source: Source, step: float, clip: float) -> int:
        """Return the row for a parameter at `step` whose gradient is scaled by `clip`."""
        key = (id(source), step, clip)
        row = self._row_of.get(key)
        if row is None:
            row = self._row_of[key] = len(self._rows)
            self._rows.append(self._fold(source, step, clip))
        return row

    def _number(self, value: object, name: str, *, below: float = math.inf) -> float:
        """Return a number; a tensor is read once, because reading one on a GPU waits for the GPU."""
        if not isinstance(value, Tensor):
            return number(value, name, below=below)
        if id(value) not in self._numbers:
            self._numbers[id(value)] = value, number(value, name, below=below)
        return self._numbers[id(value)][1]

    def _betas(self, value: object) -> tuple[float, float]:
        pair = value if isinstance(value, (tuple, list)) and len(value) == 2 else betas_of(value)
        return self._number(pair[0], "betas[0]", below=1.0), self._number(pair[1], "betas[1]", below=1.0)

    def tensor(self) -> Tensor:
        """Return the table, float32 [rows, len(Scalar)], on the CPU."""
        return torch.tensor(self._rows, dtype=torch.float32, device="cpu").view(-1, len(Scalar))

    def _fold(self, source: Source, step: float, clip: float) -> list[float]:
        lr = self._number(source["lr"], "lr")
        beta1, beta2 = self._betas(source["betas"])
        eps, weight_decay = self._number(source["eps"], "eps"), self._number(source["weight_decay"], "weight_decay")
        correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
        row = [0.0] * len(Scalar)
        row[Scalar.BETA1], row[Scalar.ONE_MINUS_BETA1] = beta1, 1.0 - beta1
        row[Scalar.BETA2], row[Scalar.ONE_MINUS_BETA2] = beta2, 1.0 - beta2
        row[Scalar.EPS], row[Scalar.DECAY] = eps, 1.0 - lr * weight_decay
        row[Scalar.STEP_SIZE] = lr / correction1
        row[Scalar.DENOM_SCALE] = 1.0 / math.sqrt(correction2)
        row[Scalar.GRAD_SCALE] = -clip if source["maximize"] else clip
        row[Scalar.UPDATE_LIMIT] = UPDATE_LIMIT * correction1
        return row
