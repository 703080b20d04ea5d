"""State dicts: packing pages into plain tensors by parameter, and matching somebody's tensors with our parameters.

Everything is checked before anything is changed; tensors are converted one parameter at a time as they are written.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedopt.codecs.base import CODEC_VERSION, StateFormat
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import Entry
from pagedopt.formats.recognise import recognise
from pagedopt.optim.arguments import StateOptions, check_hyperparameters
from pagedopt.optim.parts import Part, part_of
from pagedopt.optim.snapshots import allocator_for
from pagedopt.optim.state import GNORM_HISTORY, STEP, StateMap, snapshot
from pagedopt.optim.store import Record, Store

_KEPT_BY_THE_CLASS = ("optim_bits", "min_8bit_size", "block_wise")
"""Group options that loading leaves as they are: precision is what the optimizer that loads says."""


def pack(store: Store, state: StateMap, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what torch's `Optimizer.state_dict` returns, every value a plain number or a CPU tensor of its own."""
    positions: dict[int, int] = {}
    for index, param in enumerate(param for group in groups for param in group["params"]):
        positions.setdefault(id(param), index)
    packed_groups = []
    for group in groups:
        packed = {key: _plain(value) for key, value in group.items() if key != "params"}
        packed_groups.append({**packed, "params": [positions[id(param)] for param in group["params"]]})
    allocate = allocator_for(store)
    packed_state: dict[Any, Any] = {}
    for key, entry in state.items():
        if not isinstance(key, Tensor):
            packed_state[key] = entry.snapshot()
        elif id(key) in positions and len(entry):
            record = store.records.get(key)
            values = entry.snapshot() if record is None else snapshot(store, record, allocate)
            packed_state[positions[id(key)]] = values
    return {"state": packed_state, "param_groups": packed_groups}


def _plain(value: Any) -> Any:
    """Return a group's value as a snapshot: a tensor lr is changed in place by its owner."""
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def match_groups(
    groups: list[dict[str, Any]], saved: list[dict[str, Any]], defaults: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the groups after loading: saved values, our parameters, our names where none were saved.

    Raises:
        ValueError: another number of groups or of parameters in one (torch's words), or a value that is wrong.
    """
    if len(groups) != len(saved):
        raise ValueError("loaded state dict has a different number of parameter groups")
    if any(len(ours["params"]) != len(theirs["params"]) for ours, theirs in zip(groups, saved, strict=True)):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )
    matched = []
    for ours, theirs in zip(groups, saved, strict=True):
        codec = theirs.get("state_codec", CODEC_VERSION)
        if codec != CODEC_VERSION:
            raise CheckpointError(
                f"8-bit state of codec {codec!r} cannot be read; this version reads {CODEC_VERSION!r}"
            )
        merged = {**defaults, **deepcopy({key: value for key, value in theirs.items() if key != "params"})}
        merged.update(check_hyperparameters(merged))
        for key in _KEPT_BY_THE_CLASS:
            merged.pop(key, None)
            if key in ours:
                merged[key] = ours[key]
        merged.update(StateOptions.parse(merged))
        if "param_names" in ours and "param_names" not in merged:
            merged["param_names"] = ours["param_names"]
        matched.append({**merged, "params": ours["params"]})
    return matched


def match_entries(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the saved entries by our parameters; entries of no parameter keep their key, as in torch."""
    saved_ids = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    ours = itertools.chain.from_iterable(group["params"] for group in groups)
    by_id = dict(zip(saved_ids, ours, strict=True))
    return {by_id.get(key, key): entry for key, entry in state_dict["state"].items()}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One parameter's checked entry and the format that it will be kept in."""

    entry: Entry
    state_format: StateFormat
    part: Part
    name: str

    @property
    def is_conversion(self) -> bool:
        """Whether precision changes: decoded codes are no better than codes, and encoding rounds."""
        return self.entry.is_8bit != (self.state_format.is_8bit and not self.part.shows_decoded(self.state_format))

    def write(self, store: Store, record: Record) -> None:
        """Write the entry into the pages of `record`."""
        store.counters.view(record.slot).fill_(self.entry.step)
        record.gnorm_history = self.entry.gnorms
        store.write(record, self.entry.arrays(self.state_format, record.grid))


def check_entries(
    entries: Mapping[Any, Any], format_for: Callable[[Tensor], StateFormat], name_of: Callable[[Tensor], str]
) -> dict[Tensor, Incoming]:
    """Return the entries that are some parameter's, all checked.

    Raises:
        CheckpointError: naming the first parameter whose entry cannot be taken in.
    """
    incoming = {}
    for param, entry in entries.items():
        if not isinstance(param, Tensor) or not entry:
            continue
        part = part_of(param)
        try:
            read = recognise(_part_here(entry, part), part.local_shape)
        except CheckpointError as error:
            raise CheckpointError(f"the state of {name_of(param)} cannot be loaded: {error}") from error
        incoming[param] = Incoming(read, format_for(param), part, name_of(param))
    return incoming


def _part_here(entry: Any, part: Part) -> Any:
    """Return an entry with what is here of its distributed tensors."""
    if part.mesh is None or not isinstance(entry, Mapping):
        return entry
    here = {}
    for key, value in entry.items():
        is_whole = not isinstance(value, Tensor) or key in (STEP, GNORM_HISTORY)
        try:
            here[key] = value if is_whole else part.take(value)
        except ValueError as error:
            raise CheckpointError(f"{key} cannot be taken in: {error}") from error
    return here


def warn_of_conversions(incoming: Iterable[Incoming]) -> None:
    """Say once that precision changed on the way in."""
    converted = [one for one in incoming if one.is_conversion]
    if not converted:
        return
    first = converted[0]
    into = "8-bit" if first.state_format.is_8bit else "32-bit"
    warnings.warn(
        f"the state of {len(converted)} parameter(s) was {first.entry.source} and is kept as {into} here, "
        f"as this optimizer's class says (the first is {first.name})",
        stacklevel=5,
    )


def empty_tensor(shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> Tensor:
    """Return ordinary memory for one array of a snapshot."""
    return torch.empty(shape, dtype=dtype, device=device)
