"""Which format a parameter's state has, and its way into pages: new, loaded, assigned, or moved from other pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.optim import state_dicts
from pagedopt.optim.parameters import Parameters
from pagedopt.optim.parts import global_numel, local_tensor, part_of
from pagedopt.optim.state import StateMap
from pagedopt.optim.store import Record, Store


class Placement:
    """Puts the state of one optimizer's parameters into pages.

    Args:
        parameters: what groups and overrides say of each.
        store: of the optimizer.
        states: its `state`, whose entries become views of what is placed.
    """

    def __init__(self, parameters: Parameters, store: Store, states: StateMap) -> None:
        self._parameters = parameters
        self._store = store
        self.states = states
        self._followed_version = 0

    def format_for(self, param: Tensor) -> StateFormat:
        """Return the format of a parameter's state: its global size decides, so the mesh that it is on does not."""
        source, options = self._parameters.source_of(param), self._parameters.options_of(param)
        if options.optim_bits == 32 or global_numel(param) < options.min_8bit_size:
            return StateFormat.FLOAT32_AMSGRAD if source["amsgrad"] else StateFormat.FLOAT32
        if source["amsgrad"]:
            raise ValueError(
                f"amsgrad=True needs 32-bit state, and {self._parameters.name_of(param)} has 8-bit state; set "
                "optim_bits=32 for it, or amsgrad=False"
            )
        return StateFormat.BLOCKWISE8 if options.block_wise else StateFormat.TENSORWISE8

    def place_new(self, param: Tensor) -> None:
        """Make state for a parameter that has none."""
        if param not in self._store.records:
            self._place(param, self.format_for(param))

    def place_missing(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make state for those that have a gradient and none yet, and bring what is on another device to its parameter.

        Raises:
            ValueError: a parameter has not the shape that its state was made for.
            SpillError, BudgetError: there is no room.
        """
        if self._parameters.is_placed(params):
            return
        records = self._store.records
        for param, grad in zip(params, grads, strict=True):
            if grad is None:
                continue
            record = records.get(param)
            if record is None:
                self._place(param, self.format_for(param))
            elif record.device != param.device or record.part.local_shape != tuple(local_tensor(param).shape):
                self._move(param, record)

    def take_in(self) -> None:
        """Convert what was assigned to `state` into pages."""
        entries = {
            param: dict(self.states[param])
            for param in (self._parameters.all if self.states.unbound else ())
            if id(param) in self.states.unbound and self.states.get(param)
        }
        if not entries:
            return
        incoming = state_dicts.check_entries(entries, self.format_for, self._parameters.name_of)
        state_dicts.warn_of_changes(incoming.values(), stacklevel=6)
        for param, entry in incoming.items():
            self._take_in_one(param, entry, entries[param])

    def write(self, incoming: dict[Tensor, state_dicts.Incoming]) -> None:
        """Place and write entries that were checked."""
        for param, entry in incoming.items():
            entry.write(self._store, self._place(param, entry.state_format))

    def follow_formats(self) -> None:
        """Convert state that a changed group or override says is to be kept in another format."""
        if self._parameters.version == self._followed_version:
            return
        for param, record in list(self._store.records.items()):
            if self.format_for(param) is not record.state_format:
                entry = self.states[param].snapshot()
                incoming = state_dicts.check_entries({param: entry}, self.format_for, self._parameters.name_of)
                self.states[param] = entry
                self._take_in_one(param, incoming[param], entry)
        self._followed_version = self._parameters.version

    def _place(self, param: Tensor, state_format: StateFormat) -> Record:
        part = part_of(param)
        if part.is_distributed and self._parameters.options_of(param).percentile_clipping < 100:
            raise ValueError(
                f"percentile_clipping needs the norm of a whole gradient, and {self._parameters.name_of(param)} is cut "
                "over processes; set percentile_clipping=100 and use torch.nn.utils.clip_grad_norm_"
            )
        record = self._store.place(param, state_format, part=part, device=param.device)
        self.states.bind(param, self._store, record)
        return record

    def _move(self, param: Tensor, record: Record) -> None:
        """Bring the state of a parameter that went to another device there (`model.to(device)` keeps the object)."""
        local = local_tensor(param)
        made_for = record.part.local_shape
        if made_for != tuple(local.shape):
            raise ValueError(
                f"{self._parameters.name_of(param)} has shape {tuple(local.shape)}, its state was made for {made_for}; "
                "remove it from optimizer.state to start over"
            )
        entry = {param: self.states[param].snapshot()}
        self.states[param] = entry[param]
        self.take_in()

    def _take_in_one(self, param: Tensor, incoming: state_dicts.Incoming, entry: dict[str, Any]) -> None:
        try:
            self.write({param: incoming})
        except BaseException:
            self.states[param] = entry  # to be taken in once there is room
            raise
