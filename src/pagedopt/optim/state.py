"""`optimizer.state`: a dict of dicts whose tensors live in pages.

    state[p]               a dict: keys and tensors as torch's optimizers have them
    state[p]["exp_avg"]    a tensor of the parameter's shape, read from the pages; to change it changes the state
    state[p][key] = v      copied into the pages, from any device
    state[p] = {...}       another optimizer's state: converted into pages when it is next needed
    state.clear()          releases the pages; so does del state[p], and an entry that somebody holds is an ordinary
                           dict of its own from then on

A parameter that has no pages yet has an ordinary dict, and what is put there is taken in when pages are made.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pagedopt.codecs.base import Field
from pagedopt.errors import SpillError, StateLostError
from pagedopt.formats.entry import GNORM_HISTORY, GNORM_SLOTS
from pagedopt.optim.store import Record, Store

STEP = "step"
_MISSING = object()


def keys_of(arrays: Sequence[Field], *, has_gnorms: bool = False) -> list[str]:
    """Return the keys that `optimizer.state[p]` has."""
    return [STEP, *(array.name for array in arrays), *([GNORM_HISTORY] if has_gnorms else [])]


class ParameterState(dict):  # type: ignore[type-arg]  # a bare dict base: torch annotates state so
    """The state of one parameter: an ordinary dict until it is `bind`ed to pages, from then on a view of them."""

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(values)
        self._store: Store | None = None
        self._record: Record | None = None

    def bind(self, store: Store, record: Record) -> None:
        """Become a view of `record`."""
        super().clear()
        self._store, self._record = store, record

    def unbind(self) -> None:
        """Become an ordinary dict of what is there now, or of nothing if that is lost."""
        if self._record is None:
            return
        try:
            values = self.snapshot()
        except (StateLostError, SpillError):  # it cannot be read any more: then there is nothing to keep
            values = {}
        self._store = self._record = None
        super().update(values)

    def snapshot(self) -> dict[str, Any]:
        """Return the contents as a plain dict of tensors that share no memory with the state or each other."""
        if self._record is None or self._store is None:
            return {key: value.clone() if isinstance(value, Tensor) else value for key, value in super().items()}
        return snapshot(self._store, self._record)

    def _index(self, key: object) -> int | None:
        if self._record is None:
            return None
        names = [array.name for array in self._record.shown]
        return names.index(key) if key in names else None

    def __getitem__(self, key: str) -> Any:
        if self._record is None or self._store is None:
            return super().__getitem__(key)
        if key == STEP:
            return self._store.counters.show(self._record.slot)
        if key == GNORM_HISTORY and self._record.gnorm_history is not None:
            return self._record.gnorm_history
        index = self._index(key)
        if index is None:
            return super().__getitem__(key)
        return self._store.lend(self._record, index)

    def __setitem__(self, key: str, value: Any) -> None:
        if self._record is None or self._store is None:
            super().__setitem__(key, value)
        elif key == STEP:
            self._store.counters.view(self._record.slot).fill_(float(value))
        elif key == GNORM_HISTORY:
            self._record.gnorm_history = checked_gnorms(value)
        else:
            self._write(key, value)

    def _write(self, key: str, value: Any) -> None:
        index = self._index(key)
        if index is None or self._record is None or self._store is None:
            raise KeyError(f"{key!r} is no part of this state, which has {', '.join(map(repr, self))}")
        array = self._record.shown[index]
        shape = self._record.array_shape(array)
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} must be a tensor, got {value!r}")
        try:
            value = self._record.part.take(value)
        except ValueError as error:
            raise ValueError(f"{key} cannot be taken in: {error}") from error
        if tuple(value.shape) != shape:
            raise ValueError(f"{key} has shape {shape}, cannot hold {tuple(value.shape)}")
        if value.dtype != array.dtype and not (array.dtype.is_floating_point and value.dtype.is_floating_point):
            raise TypeError(f"{key} holds {array.dtype}, got {value.dtype}")
        with self._store.lock, torch.no_grad():
            self._store.settle()
            self._store.overwrite(self._record, {index: value.detach().to(array.dtype)})
            self._store.refresh()

    def __delitem__(self, key: str) -> None:
        if self._record is not None:
            raise KeyError(f"{key!r} lives in a page and cannot be removed alone; delete the parameter's whole entry")
        super().__delitem__(key)

    def __iter__(self) -> Iterator[str]:
        if self._record is None:
            return super().__iter__()
        return iter(keys_of(self._record.shown, has_gnorms=self._record.gnorm_history is not None))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return any(key == known for known in self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = None  # a dict is not hashable

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.snapshot(),)

    def keys(self) -> Any:
        return list(self)

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return _Items(self)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - it is `get`

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **values: Any) -> None:
        for key, value in dict(*others, **values).items():
            self[key] = value

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        if key not in self:
            if default is _MISSING:
                raise KeyError(key)
            return default
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> Any:
        if self._record is None:
            return super().popitem()
        raise KeyError("state that lives in pages is removed by parameter: del optimizer.state[p]")

    def clear(self) -> None:
        if self._record is None:
            super().clear()
            return
        raise KeyError("state that lives in pages is cleared by parameter: del optimizer.state[p]")

    def copy(self) -> dict[str, Any]:
        return self.snapshot()

    def __or__(self, other: Any) -> Any:
        return {**self, **other}

    def __ror__(self, other: Any) -> Any:
        return {**other, **self}


class _Items:
    """`items()` that reads one tensor at a time, so that a loop over all state holds one copy and not all."""

    def __init__(self, state: ParameterState) -> None:
        self._state = state

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((key, self._state[key]) for key in list(self._state))

    def __len__(self) -> int:
        return len(self._state)


class StateMap(defaultdict):  # type: ignore[type-arg]
    """`optimizer.state`, by parameter. Reading a parameter that has none makes an empty entry, as in torch."""

    def __init__(self, discard: Callable[[Any], None], clear: Callable[[], None]) -> None:
        super().__init__()
        self._discard, self._clear = discard, clear
        self.unbound: set[int] = set()
        """`id` of the entries that may hold something to be taken into pages."""

    def bind(self, parameter: Tensor, store: Store, record: Record) -> None:
        """Make the entry of `parameter` a view of its record."""
        entry = super().get(parameter)
        if entry is None:
            entry = ParameterState()
            super().__setitem__(parameter, entry)
        entry.bind(store, record)
        self.unbound.discard(id(parameter))

    def __missing__(self, parameter: Any) -> ParameterState:
        entry = ParameterState()
        super().__setitem__(parameter, entry)
        self.unbound.add(id(parameter))
        return entry

    def __setitem__(self, parameter: Any, values: Any) -> None:
        if values is super().get(parameter):
            return
        entry = ParameterState(values.snapshot() if isinstance(values, ParameterState) else values)
        self._part_with(parameter)
        self.unbound.add(id(parameter))
        super().__setitem__(parameter, entry)
        self._discard(parameter)

    def __delitem__(self, parameter: Any) -> None:
        if parameter not in self:
            raise KeyError(parameter)
        self._part_with(parameter)
        super().pop(parameter, None)
        self.unbound.discard(id(parameter))
        self._discard(parameter)

    def _part_with(self, parameter: Any) -> None:
        """Let an entry that somebody else holds, too, keep what is in it when the state of `parameter` goes."""
        if parameter in self and self._num_references(parameter) > _REFERENCES_OF_ONE_HOLDER:
            super().__getitem__(parameter).unbind()

    def _num_references(self, parameter: Any) -> int:
        return sys.getrefcount(super().get(parameter))

    def pop(self, parameter: Any, default: Any = _MISSING) -> Any:
        if parameter not in self:
            if default is _MISSING:
                raise KeyError(parameter)
            return default
        values = super().__getitem__(parameter).snapshot()
        del self[parameter]
        return values

    def popitem(self) -> tuple[Any, Any]:
        parameter = next(reversed(self))
        return parameter, self.pop(parameter)

    def setdefault(self, parameter: Any, default: Any = None) -> Any:
        if parameter not in self and default is not None:
            self[parameter] = default
        return self[parameter]

    def update(self, *others: Any, **values: Any) -> None:
        for parameter, entry in dict(*others, **values).items():
            self[parameter] = entry

    def leave(self) -> None:
        """Become an ordinary dict of ordinary dicts: the optimizer has another state from now on."""
        for entry in self.values():
            entry.unbind()
        self._discard, self._clear = _nothing, _nothing

    def part_with_all(self) -> None:
        """Let entries that somebody else holds, too, keep what is in them when all state goes."""
        for parameter in self:
            self._part_with(parameter)

    def clear(self) -> None:
        self.part_with_all()
        super().clear()
        self.unbound.clear()
        self._clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({parameter: entry.snapshot() for parameter, entry in self.items()},)


def _nothing(*_: Any) -> None:
    """There are no pages to be given back."""


def _references_of_one_holder() -> int:
    """Return the references to an entry that only its map holds: how many a call adds is Python's affair."""
    states = StateMap(_nothing, _nothing)
    states[0] = {}
    return states._num_references(0)  # noqa: SLF001 - of this module


_REFERENCES_OF_ONE_HOLDER = _references_of_one_holder()


def checked_gnorms(value: object) -> Tensor:
    """Return percentile clipping's memory as its own float32 [100] CPU tensor."""
    if not isinstance(value, Tensor) or value.numel() != GNORM_SLOTS:
        raise ValueError(f"{GNORM_HISTORY} must be a tensor of {GNORM_SLOTS} squared gradient norms, got {value!r}")
    return value.detach().to("cpu", torch.float32, copy=True).view(GNORM_SLOTS)


def snapshot(store: Store, record: Record, empty: Callable[..., Tensor] = torch.empty) -> dict[str, Any]:
    """Return the state of one record as a plain dict of CPU tensors, each with memory of its own from `empty`."""
    arrays = record.shown
    with store.lock, torch.no_grad():
        store.settle()
        store.check_whole()
        out = {i: empty(record.array_shape(a), dtype=a.dtype, device="cpu") for i, a in enumerate(arrays)}
        store.read(record, out)
        values: dict[str, Any] = {STEP: store.counters.view(record.slot).clone()}
        values.update({array.name: record.as_shown(array, out[i]) for i, array in enumerate(arrays)})
        if record.gnorm_history is not None:
            values[GNORM_HISTORY] = record.gnorm_history.clone()
    return values
