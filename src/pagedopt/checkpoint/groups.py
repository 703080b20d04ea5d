"""Parameter groups as other libraries' optimizers have them, from a state dict's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pagedopt.errors import CheckpointError
from pagedopt.optim.arguments import StateOptions, betas_of, number

Group = dict[str, Any]

_OURS = ("state_codec", *(field.name for field in fields(StateOptions)))
_TORCHS = {"foreach": None, "capturable": False, "differentiable": False, "fused": None, "decoupled_weight_decay": True}
_BITSANDBYTES = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}


def torch_groups(groups: list[Group]) -> list[Group]:
    """Return the groups as torch.optim.AdamW has them; keys that are nobody's (a scheduler's) stay."""
    missing = {"amsgrad": False, "maximize": False, **_TORCHS}
    return [
        {**missing, **_without(group, (*_OURS, *_BITSANDBYTES)), "decoupled_weight_decay": True} for group in groups
    ]


def bitsandbytes_groups(groups: list[Group]) -> list[Group]:
    """Return the groups as bitsandbytes' AdamW has them; keys that are nobody's (a scheduler's) stay.

    Raises:
        CheckpointError: a group has amsgrad or maximize, which bitsandbytes has not.
    """
    theirs = []
    for index, group in enumerate(groups):
        for key in ("amsgrad", "maximize"):
            if group.get(key):
                raise CheckpointError(f"param_groups[{index}] has {key}=True, which bitsandbytes has not")
        beta1, beta2 = betas_of(group["betas"])
        theirs.append(
            {
                **_BITSANDBYTES,
                **_without(group, (*_OURS, *_TORCHS, "amsgrad", "maximize")),
                "lr": number(group["lr"], "lr"),
                "betas": (float(beta1), float(beta2)),
            }
        )
    return theirs


def _without(group: Group, keys: tuple[str, ...]) -> Group:
    return {key: value for key, value in group.items() if key not in keys}
