"""Small optimizers to save and load: every kind of state, over many pages, with names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oracle import random_params, train
from pagedopt import PagedAdamW
from pagedopt.tiers.buffers import bytes_of
from strategies import STATE_KINDS

SHAPES = [(300, 257), (5,), (), (0,), (64, 64), (33, 3), (70_001,), (4, 300)]
"""Several pages, none, narrow rows, short blocks."""

TINY = [(20, 260), (3,)]
"""8-bit and 32-bit state in less than 20 KB."""


def optimizer_of(kind: str, shapes: list[tuple[int, ...]] = SHAPES, *, steps: int = 2, **options: Any) -> PagedAdamW:
    """Return an optimizer with state of that kind after some steps; page_size is 64 KiB if not given."""
    params = random_params(shapes)
    named = [(f"layer.{index}", param) for index, param in enumerate(params)]
    optimizer = PagedAdamW(named, **{"lr": 1e-2, "page_size": "64KiB", **STATE_KINDS[kind], **options})
    train(optimizer, params, steps)
    return optimizer


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def contents(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return all that a checkpoint must bring back: groups, and the state by name."""
    packed = optimizer.state_dict()
    groups = copy.deepcopy(packed["param_groups"])
    names = {
        number: name for group in groups for number, name in zip(group["params"], group["param_names"], strict=True)
    }
    return {"groups": groups, "state": {names[number]: entry for number, entry in packed["state"].items()}}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return where two `contents` differ, to the bit."""
    found = [] if _as_text(ours["groups"]) == _as_text(theirs["groups"]) else ["groups"]
    if ours["state"].keys() != theirs["state"].keys():
        return [*found, "parameters with state"]
    for name, entry in ours["state"].items():
        other = theirs["state"][name]
        if entry.keys() != other.keys():
            found.append(f"keys of {name}")
            continue
        for key, tensor in entry.items():
            same_kind = (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape)
            if not same_kind or bytes_in(tensor) != bytes_in(other[key]):
                found.append(f"{name}.{key}")
    return found


def _as_text(groups: list[dict[str, Any]]) -> list[str]:
    """Return groups with their values as Python writes them: a nan is then equal to itself."""
    return [str(sorted(group.items())) for group in groups]


def bytes_in(tensor: Tensor) -> bytes:
    return bytes(bytes_of(tensor.contiguous()))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
