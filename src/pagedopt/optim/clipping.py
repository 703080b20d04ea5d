"""Percentile clipping: a gradient much longer than those before it is scaled down to a percentile of their norms.

As bitsandbytes up to 0.49 has it: a parameter's last 100 squared gradient norms are kept; at its first step all 100
take the first norm; a norm above the p-th smallest is scaled down to that.
"""

from __future__ import annotations

import math

import torch

from pagedopt.formats.entry import GNORM_SLOTS
from pagedopt.optim.store import Record


def clip_scale(record: Record, squared_norm: float, step: int, percentile: int) -> float:
    """Remember this step's squared gradient norm and return what the gradient is to be multiplied by.

    A norm that is not finite is neither remembered nor clipped to: it says nothing of the gradients to come, and a
    scale of 0 or nan would spoil values whose own gradient is finite.
    """
    if not math.isfinite(squared_norm):
        return 1.0
    if record.gnorm_history is None:
        record.gnorm_history = torch.full((GNORM_SLOTS,), squared_norm, dtype=torch.float32, device="cpu")
    record.gnorm_history[step % GNORM_SLOTS] = squared_norm
    limit = record.gnorm_history.sort().values[percentile].item()
    return math.sqrt(limit / squared_norm) if squared_norm > limit else 1.0
