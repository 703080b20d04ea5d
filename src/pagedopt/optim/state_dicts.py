"""State dicts: packing pages into plain tensors by parameter, and matching somebody's tensors with our parameters.

Everything is checked before anything is changed; tensors are converted one parameter at a time as they are written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import GNORM_HISTORY, Entry
from pagedopt.formats.recognise import recognise
from pagedopt.optim.parts import Part, part_of
from pagedopt.optim.snapshots import allocator_for
from pagedopt.optim.state import STEP, StateMap, snapshot
from pagedopt.optim.store import Record, Store


def pack(store: Store, state: StateMap, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what torch's `Optimizer.state_dict` returns, every value a plain number or a CPU tensor of its own."""
    positions = _positions(groups)
    allocate = allocator_for(store)
    packed_state: dict[Any, Any] = {}
    for key, entry in state.items():
        if not isinstance(key, Tensor):
            packed_state[key] = entry.snapshot()
        elif id(key) in positions and len(entry):
            record = store.records.get(key)
            values = entry.snapshot() if record is None else snapshot(store, record, allocate)
            packed_state[positions[id(key)]] = values
    return {"state": packed_state, "param_groups": pack_groups(groups)}


def pack_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups as a state dict has them: a snapshot, with the number of each parameter in its place."""
    positions = _positions(groups)
    return [
        {
            **{key: _plain(value) for key, value in group.items() if key != "params"},
            "params": [positions[id(param)] for param in group["params"]],
        }
        for group in groups
    ]


def _positions(groups: list[dict[str, Any]]) -> dict[int, int]:
    """Return the number of each parameter by its `id`."""
    positions: dict[int, int] = {}
    for index, param in enumerate(param for group in groups for param in group["params"]):
        positions.setdefault(id(param), index)
    return positions


def _plain(value: Any) -> Any:
    """Return a group's value as a snapshot: a tensor lr is changed in place by its owner, and NumPy's numbers are not
    what `weights_only` reads.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_plain, value))
    return deepcopy(value)


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
        store.take(record, self.entry.open())


Recognise = Callable[[Any, "tuple[int, ...]"], Entry]
"""Returns the checked entry of a parameter of a shape, or raises `CheckpointError`."""


def check_entries(
    entries: Mapping[Any, Any],
    format_for: Callable[[Tensor], StateFormat],
    name_of: Callable[[Tensor], str],
    recognise: Recognise = recognise,
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
            state_format = format_for(param)
        except ValueError as error:
            raise CheckpointError(f"the state of {name_of(param)} cannot be loaded: {error}") from error
        incoming[param] = Incoming(read, state_format, part, name_of(param))
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


def warn_of_changes(incoming: Collection[Incoming], *, stacklevel: int = 4) -> None:
    """Say once that precision changes on the way in, and once what is left out."""
    converted = [one for one in incoming if one.is_conversion]
    if converted:
        first = converted[0]
        into = "8-bit" if first.state_format.is_8bit else "32-bit"
        warnings.warn(
            f"the state of {len(converted)} parameter(s) was {first.entry.source} and is kept as {into} here, "
            f"as this optimizer's class says (the first is {first.name})",
            stacklevel=stacklevel,
        )
    lacking = [one for one in incoming if one.entry.left_out]
    if lacking:
        keys = ", ".join(lacking[0].entry.left_out)
        warnings.warn(
            f"{keys} of {len(lacking)} parameter(s) is no state of AdamW and is left out (the first is "
            f"{lacking[0].name}); parameters here have no bits beyond their own",
            stacklevel=stacklevel,
        )
