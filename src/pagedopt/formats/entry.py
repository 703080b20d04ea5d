"""One parameter's entry of a state dict, of whatever optimizer, on its way into pages.

recognise(entry, shape)   whose entry it is, checked against the parameter; nothing is converted yet
Entry.open()              a reader of its moments, some values at a time: no conversion needs a whole parameter
kept.Recoded              those moments as the arrays of a page's format
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pagedopt.errors import CheckpointError

PIECE = 1 << 15
"""Values converted at once: two dozen temporaries of 128 or 256 KiB, and enough work to hide Python's."""

GNORM_HISTORY = "gnorm_history"
"""Our key for the squared gradient norms of percentile clipping."""

GNORM_SLOTS = 100
"""Gradient norms that percentile clipping remembers."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of some values of one parameter: flat float32 CPU tensors in row-major order.

    Attributes:
        exp_avg, exp_avg_sq: the first moment and the second (itself, not its root).
        max_exp_avg_sq: amsgrad's, or None.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None = None


class Reader(Protocol):
    """The moments of one parameter. Values may be asked for in any order and more than once."""

    def moments(self, start: int, stop: int) -> Moments:
        """Return the moments of the values [start, stop)."""
        ...

    def finish(self) -> None:
        """Say that all was read.

        Raises:
            CheckpointError: what was read is not what was once written.
        """
        ...


@dataclass(frozen=True, slots=True)
class Values:
    """A reader of moments that are held as tensors of any float type, flat in row-major order."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None = None

    def moments(self, start: int, stop: int) -> Moments:
        held = (self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq)
        m, v, v_max = (None if values is None else as_float32(values[start:stop]) for values in held)
        assert m is not None
        assert v is not None
        return Moments(m, v, v_max)

    def finish(self) -> None:
        """Values in memory are what they are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked entry.

    Attributes:
        source: whose it is and how it is kept, for people: `bitsandbytes 8-bit`.
        step: updates made so far.
        is_8bit: whether its moments are codes.
        open: makes a reader of its moments.
        gnorms: percentile clipping's squared norms, or None.
        left_out: the keys of what it has that is no state of AdamW, and stays behind.
    """

    source: str
    step: float
    is_8bit: bool
    open: Callable[[], Reader]
    gnorms: Tensor | None = None
    left_out: tuple[str, ...] = ()


def check_keys(entry: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse an entry with something in it that this format does not have: ignoring it would change the optimizer."""
    foreign = [key for key in entry if key not in known]
    if foreign:
        raise CheckpointError(
            f"{', '.join(map(repr, foreign))} is no part of AdamW's state, which has {', '.join(sorted(known))}"
        )


def step_of(entry: Mapping[str, Any]) -> float:
    """Return the step of an entry, a number or a tensor of one."""
    step = entry.get("step")
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step < 2**53:
        raise CheckpointError(f"step must be a number of updates, got {step!r}")
    return float(step)


def tensor_of(entry: Mapping[str, Any], key: str, numel: int, *dtypes: torch.dtype) -> Tensor:
    """Return `entry[key]`, checked to be a dense tensor of `numel` elements of one of `dtypes` (default: any float)."""
    if key not in entry:
        raise CheckpointError(f"{key} is missing; there are {', '.join(map(str, entry))}")
    tensor = entry[key]
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        raise CheckpointError(f"{key} must be a dense tensor, got {type(tensor).__name__}")
    if tensor.numel() != numel:
        raise CheckpointError(f"{key} has {tensor.numel()} elements {tuple(tensor.shape)}, expected {numel}")
    if tensor.dtype not in dtypes if dtypes else not tensor.is_floating_point():
        raise CheckpointError(f"{key} is {tensor.dtype}, expected {' or '.join(map(str, dtypes)) or 'a float type'}")
    return tensor.detach()


def values_of(entry: Mapping[str, Any], key: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
    """Return `entry[key]`, checked to have the parameter's shape."""
    tensor = tensor_of(entry, key, math.prod(shape), *dtypes)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{key} has shape {tuple(tensor.shape)}, the parameter {shape}")
    return tensor


def as_float32(tensor: Tensor) -> Tensor:
    """Return values as a flat float32 CPU tensor in row-major order."""
    return tensor.to("cpu", torch.float32).reshape(-1)


def gnorms_of(entry: Mapping[str, Any], key: str = GNORM_HISTORY) -> Tensor | None:
    """Return percentile clipping's squared norms as a tensor of its own, or None."""
    if key not in entry:
        return None
    return tensor_of(entry, key, GNORM_SLOTS).to("cpu", torch.float32, copy=True).view(-1)
