"""Copies of state that are handed out: watched, and written back into the pages when they changed.

A copy is watched for as long as anything shows its memory: the tensor that was handed out, a view or detached tensor of
it, an array of NumPy over it. If its bytes changed by the next time the store is used, they go back into the pages, and
after every step it is brought up to date. So `state[p]["exp_avg"].zero_()` does what it says.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from pagedopt.tiers.buffers import bytes_of

if TYPE_CHECKING:
    from pagedopt.optim.store import Record, Store


@dataclass(slots=True)
class _Lent:
    """A copy handed out.

    Attributes:
        alias: a tensor of ours over the same bytes.
        memory: dead once nothing but `alias` shows them.
        holder: the tensor that was handed out, while somebody has that one.
        digest: of the bytes as they are in the pages; None while they are being brought up to date.
    """

    record: Record
    index: int
    alias: Tensor
    memory: weakref.ref[memoryview]
    holder: weakref.ref[Tensor]
    digest: int | None


class LentCopies:
    """The copies of one store, which it passes to every method: it is not kept, so that its end needs no collector."""

    def __init__(self) -> None:
        self._lent: dict[tuple[int, int], _Lent] = {}

    def lend(self, store: Store, record: Record, index: int) -> Tensor:
        """Return one array of `record` as a CPU tensor, the same one while somebody holds it."""
        array = record.shown[index]
        shape = record.array_shape(array)
        if not math.prod(shape):
            return torch.empty(shape, dtype=array.dtype, device="cpu")
        lent = self._lent.get((id(record), index))
        held = lent.holder() if lent is not None else None
        if held is not None:
            return held
        memory = lent.memory() if lent is not None else None
        with torch.inference_mode(mode=False), torch.no_grad():
            if lent is not None and memory is not None:
                out = torch.frombuffer(memory, dtype=array.dtype).view(shape)
                lent.holder = weakref.ref(out)
                return out
            buffer = bytearray(math.prod(shape) * array.dtype.itemsize)
            memory = memoryview(buffer)  # an object of its own, which the storage of what is handed out keeps alive
            out = torch.frombuffer(memory, dtype=array.dtype).view(shape)
            alias = torch.frombuffer(buffer, dtype=array.dtype).view(shape)
            store.read(record, {index: alias})
        self._lent[(id(record), index)] = _Lent(
            record, index, alias, weakref.ref(memory), weakref.ref(out), _digest(alias)
        )
        return out

    def settle(self, store: Store) -> None:
        """Write changed copies back into the pages and forget those that nothing shows any more."""
        for key, lent in list(self._lent.items()):
            is_held = lent.memory() is not None  # asked first: a change made before the last holder went is then seen
            if lent.digest is None:
                _update(store, lent)
            elif (digest := _digest(lent.alias)) != lent.digest:
                store.check_whole()
                store.overwrite(lent.record, {lent.index: lent.alias})
                lent.digest = digest
            if not is_held:
                del self._lent[key]

    def refresh(self, store: Store) -> None:
        """Bring the copies that are still held up to date after a step."""
        for key, lent in list(self._lent.items()):
            if lent.memory() is None:
                del self._lent[key]
            else:
                lent.digest = None  # whatever ends this midway: no part of an old copy goes back into the pages
        for lent in self._lent.values():
            _update(store, lent)

    def forget(self, record: Record) -> None:
        """Watch the copies of `record` no more: they are their holders' own now."""
        for index in range(len(record.shown)):
            self._lent.pop((id(record), index), None)


def _update(store: Store, lent: _Lent) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        store.read(lent.record, {lent.index: lent.alias})
    lent.digest = _digest(lent.alias)


def _digest(tensor: Tensor) -> int:
    """Return a hash of the bytes, not of the version counter, which writes through `.data` or NumPy do not move."""
    return xxh3_64_intdigest(bytes_of(tensor))
