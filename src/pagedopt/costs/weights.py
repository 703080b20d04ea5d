"""A parameter that trains, without its values; and those that LoRA puts beside a model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pagedopt.errors import PagedOptError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a parameter may be, by name."""

ALL_LINEAR = "all-linear"
"""The LoRA target that means every linear layer but the output head, as in peft."""

_HEADS = ("lm_head", "embed_out", "output")


class SizesError(PagedOptError, ValueError):
    """What was given says nothing about sizes; the message says what would."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter that trains, without its values.

    Attributes:
        options: what its group says of how state is kept, as pairs: `optim_bits`, `min_8bit_size`, `block_wise`.
        linear: `(in, out)` features if it is the matrix of a linear layer, which LoRA could adapt.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    options: tuple[tuple[str, Any], ...] = ()
    linear: tuple[int, int] | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def lora(weights: Sequence[Weight], rank: int, targets: Sequence[str] = (ALL_LINEAR,)) -> tuple[Weight, ...]:
    """Return the parameters that train if LoRA adapts the linear layers of `weights`: two float32 matrices each.

    Args:
        weights: those of the base model.
        rank: of the two matrices.
        targets: ends of the names of the layers, such as `q_proj`; `all-linear`: every one but the output head.

    Raises:
        SizesError: a target names no linear layer, or nothing is known of layers.
    """
    layers = {weight.name.removesuffix(".weight"): weight.linear for weight in weights if weight.linear is not None}
    if not layers:
        raise SizesError(
            "no linear layer is known here, so LoRA has no shapes; give a config.json or a safetensors file"
        )
    adapted: dict[str, tuple[int, int]] = {}
    for target in targets:
        chosen = {name: linear for name, linear in layers.items() if linear is not None and _is_target(name, target)}
        if not chosen:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise SizesError(f"target_modules names no linear layer {target!r}; there are {known}")
        adapted.update(chosen)
    return tuple(
        Weight(f"{name}.lora_{letter}.default.weight", shape)
        for name in layers
        if name in adapted
        for letter, shape in (("A", (rank, adapted[name][0])), ("B", (adapted[name][1], rank)))
    )


def _is_target(name: str, target: str) -> bool:
    if target == ALL_LINEAR:
        return name.rpartition(".")[2] not in _HEADS
    return name == target or name.endswith(f".{target}")
