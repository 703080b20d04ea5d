"""Which saved parameter is which of ours: by name where both sides have names, else by position, as in torch."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pagedopt.codecs.base import CODEC_VERSION
from pagedopt.errors import CheckpointError
from pagedopt.optim.arguments import StateOptions, check_hyperparameters

Group = dict[str, Any]

_KEPT_BY_THE_CLASS = ("optim_bits", "min_8bit_size", "block_wise")
"""Group options that loading leaves as they are: precision is what the optimizer that loads says."""


@dataclass(frozen=True, slots=True)
class Match:
    """What loading makes of a state dict.

    Attributes:
        groups: our groups after loading: saved values, our parameters in our order.
        entries: the saved entries by our parameters; entries of no parameter keep their key, as in torch.
    """

    groups: list[Group]
    entries: dict[Any, Any]


def match(groups: list[Group], state_dict: Mapping[str, Any], defaults: Mapping[str, Any]) -> Match:
    """Match the groups and entries of `state_dict` with ours.

    Raises:
        ValueError: another number of groups or of parameters in one (torch's words), or a value that is wrong.
        CheckpointError: other names, or no state dict.
    """
    if not {"state", "param_groups"} <= set(state_dict):
        keys = ", ".join(map(repr, state_dict)) or "nothing"
        raise CheckpointError(f"an optimizer's state dict has 'state' and 'param_groups', this has {keys}")
    saved = list(state_dict["param_groups"])
    if len(groups) != len(saved):
        raise ValueError("loaded state dict has a different number of parameter groups")
    saved = _in_our_order(groups, saved)
    if any(len(ours["params"]) != len(theirs["params"]) for ours, theirs in zip(groups, saved, strict=True)):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )
    _warn_of_coupled_decay(saved)
    by_id = dict(zip(_params(saved), _params(groups), strict=True))
    return Match(
        [_merged(ours, theirs, defaults) for ours, theirs in zip(groups, saved, strict=True)],
        {by_id.get(key, key): entry for key, entry in state_dict["state"].items()},
    )


def _params(groups: Sequence[Group]) -> list[Any]:
    return list(itertools.chain.from_iterable(group["params"] for group in groups))


def _merged(ours: Group, theirs: Group, defaults: Mapping[str, Any]) -> Group:
    codec = theirs.get("state_codec", CODEC_VERSION)
    if codec != CODEC_VERSION:
        raise CheckpointError(f"the saved 8-bit state is of codec {codec!r:.80}; this version reads {CODEC_VERSION!r}")
    merged = {**defaults, **deepcopy({key: value for key, value in theirs.items() if key != "params"})}
    for key in (*_KEPT_BY_THE_CLASS, "param_names"):
        saved = merged.pop(key, None)
        if key in ours:
            merged[key] = ours[key]
        elif key == "param_names" and saved is not None:
            merged[key] = saved
    try:
        checked = {**check_hyperparameters(merged), **StateOptions.parse(merged)}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a saved group cannot be taken over: {error}") from error
    return {**merged, **checked, "params": ours["params"]}


def _in_our_order(groups: list[Group], saved: list[Group]) -> list[Group]:
    """Return the saved groups with each parameter where ours of that name is; as they are if a side has no names."""
    our_names, their_names = _names(groups), _names(saved)
    if our_names is None or their_names is None:
        return saved
    if not set(our_names) & set(their_names):
        warnings.warn(
            f"no saved parameter has the name of one here (the first are {their_names[0]!r} and {our_names[0]!r}), so "
            "state is matched by position",
            stacklevel=6,
        )
        return saved
    _check_same_names(our_names, their_names)
    by_names = {frozenset(group.get("param_names", ())): group for group in saved}
    return [_reordered(by_names.get(frozenset(ours.get("param_names", ()))), ours) for ours in groups]


def _names(groups: Sequence[Group]) -> list[str] | None:
    """Return the names of all parameters, None if some have none or share one."""
    names: list[str] = []
    for group in groups:
        if len(group.get("param_names", ())) != len(group["params"]):
            return None
        names += group.get("param_names", ())
    return names if names and len(set(names)) == len(names) else None


def _check_same_names(ours: list[str], theirs: list[str]) -> None:
    missing = [name for name in ours if name not in set(theirs)]
    foreign = [name for name in theirs if name not in set(ours)]
    if missing or foreign:
        said = [f"{_some(missing)} not saved"] if missing else []
        said += [f"{_some(foreign)} not in this optimizer"] if foreign else []
        raise CheckpointError(
            f"the saved parameters are not this optimizer's: {' and '.join(said)}; pass the same parameters, or "
            "parameters without names to match by position"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    if len(names) > 3:
        return f"{shown} and {len(names) - 3} more are"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _reordered(theirs: Group | None, ours: Group) -> Group:
    if theirs is None:
        raise CheckpointError(
            f"the saved groups are other ones: none has the {len(ours['params'])} parameters of the group of "
            f"{ours['param_names'][0]!r}; pass the same groups, or parameters without names to match by position"
        )
    by_name = dict(zip(theirs.get("param_names", ()), theirs["params"], strict=True))
    return {**theirs, "params": [by_name[name] for name in ours.get("param_names", ())]}


def _warn_of_coupled_decay(saved: list[Group]) -> None:
    """Adam adds weight decay to the gradient. AdamW does not, and state does not say which it is to be."""
    for group in saved:
        if group.get("decoupled_weight_decay") is False and group.get("weight_decay"):
            warnings.warn(
                f"the saved state is Adam's with weight_decay={group['weight_decay']} added to the gradient, which is "
                "decoupled from it here, as AdamW has it",
                stacklevel=6,
            )
            return
