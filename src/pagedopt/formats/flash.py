"""flashoptim's entries: compressed moments in groups of 32, and the low bits of a master weight, which are not ours.

exp_avg       y = q / 127,  m = scale * y / (2 - |y|)        q int8
exp_avg_sq    v = (scale * q / 255)^2                        q uint8
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedopt.formats.entry import (
    Entry,
    Moments,
    Reader,
    Values,
    as_float32,
    check_keys,
    step_of,
    tensor_of,
    values_of,
)

_GROUP = 32
QUANTIZED, _SCALES = "::quantized", "::scales"
_ERROR_BITS = "error_bits"
_KEYS = (
    "step",
    *(f"{name}{suffix}" for name in ("exp_avg", "exp_avg_sq") for suffix in ("", QUANTIZED, _SCALES)),
    _ERROR_BITS,
)


def is_flash_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether flashoptim wrote this; without master weights and compression its entries are torch's."""
    return _ERROR_BITS in entry or any(isinstance(key, str) and key.endswith((QUANTIZED, _SCALES)) for key in entry)


def read_flash(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry. `error_bits` belong to the parameter: here parameters have no hidden bits."""
    check_keys(entry, _KEYS)
    is_compressed = f"exp_avg{QUANTIZED}" in entry
    return Entry(
        source=f"flashoptim {'8' if is_compressed else '16'}-bit",
        step=step_of(entry),
        is_8bit=is_compressed,
        open=_compressed(entry, shape) if is_compressed else _plain(entry, shape),
        left_out=(_ERROR_BITS,) if _ERROR_BITS in entry else (),
    )


@dataclass(frozen=True, slots=True)
class _Open:
    """Makes the reader of checked tensors: quantized and scales of both moments."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]

    def __call__(self) -> Reader:
        q1, s1, q2, s2 = self.tensors
        return _Groups(q1.reshape(-1), as_float32(s1), q2.reshape(-1), as_float32(s2))


@dataclass(frozen=True, slots=True)
class _Groups:
    """A reader of compressed moments."""

    q1: Tensor
    scales1: Tensor
    q2: Tensor
    scales2: Tensor

    def moments(self, start: int, stop: int) -> Moments:
        group = torch.arange(start, stop, device="cpu").div_(_GROUP, rounding_mode="floor")
        y = as_float32(self.q1[start:stop]) / 127
        root = self.scales2[group] * (as_float32(self.q2[start:stop]) / 255)
        return Moments(self.scales1[group] * (y / (2 - y.abs())), root * root)

    def finish(self) -> None:
        """Codes in memory are what they are."""


def _plain(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Callable[[], Reader]:
    first, second = values_of(entry, "exp_avg", shape), values_of(entry, "exp_avg_sq", shape)
    return lambda: Values(first.reshape(-1), second.reshape(-1))


def _compressed(entry: Mapping[str, Any], shape: tuple[int, ...]) -> _Open:
    num_groups = -(-math.prod(shape) // _GROUP)
    tensors = []
    for name, dtype in (("exp_avg", torch.int8), ("exp_avg_sq", torch.uint8)):
        tensors.append(values_of(entry, f"{name}{QUANTIZED}", shape, dtype))
        scales = tensor_of(entry, f"{name}{_SCALES}", num_groups)
        # for bfloat16 parameters the bytes of float16 are saved under the name bfloat16, so that torch casts nothing
        tensors.append(scales.view(torch.float16) if scales.dtype == torch.bfloat16 else scales)
    q1, s1, q2, s2 = tensors
    return _Open((q1, s1, q2, s2))
