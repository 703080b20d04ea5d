"""The step of every parameter of an optimizer: float32 numbers in a few arrays, so that all advance in one operation.

`optimizer.state[p]["step"]` is a 0-dimensional view into them, as live as torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1024
"""Counters to an array. Arrays are never replaced, so a view that somebody holds stays live while others are added."""


class Slots:
    """Some slots, each named once, as indices into the arrays: made once where the same are advanced at every step."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order
        by_chunk: dict[int, list[int]] = {}
        for slot in order:
            by_chunk.setdefault(slot // _CHUNK, []).append(slot % _CHUNK)
        self.inside = {
            chunk: torch.tensor(inside, dtype=torch.int64, device="cpu") for chunk, inside in by_chunk.items()
        }


class StepCounters:
    """Counters by slot."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._free: list[int] = []
        self._shown: set[int] = set()

    def new(self) -> int:
        """Return the slot of a new counter at 0."""
        if not self._free:
            first = len(self._chunks) * _CHUNK
            with torch.inference_mode(mode=False):  # a view taken later must have a version counter
                self._chunks.append(torch.zeros(_CHUNK, dtype=torch.float32, device="cpu"))
            self._free.extend(range(first + _CHUNK - 1, first - 1, -1))
        slot = self._free.pop()
        self.view(slot).zero_()
        return slot

    def free(self, slot: int) -> None:
        """Give `slot` back. One that was shown is never used again: who has it keeps the count as it was."""
        if slot in self._shown:
            self._shown.remove(slot)
        else:
            self._free.append(slot)

    def view(self, slot: int) -> Tensor:
        """Return the counter as a 0-dimensional float32 CPU tensor that shares its memory."""
        return self._chunks[slot // _CHUNK][slot % _CHUNK]

    def show(self, slot: int) -> Tensor:
        """Return `view(slot)` for somebody who may keep it for longer than the counter lives."""
        self._shown.add(slot)
        return self.view(slot)

    def values(self, slots: Slots) -> list[float]:
        """Return the counters at `slots`."""
        if len(slots.order) == 1:
            return [self.view(slots.order[0]).item()]
        if len(slots.inside) == 1:
            chunk, inside = next(iter(slots.inside.items()))
            return self._chunks[chunk][inside].tolist()
        flat = [value for chunk in self._chunks for value in chunk.tolist()]
        return [flat[slot] for slot in slots.order]

    def add_one(self, slots: Slots) -> None:
        """Add one to the counters at `slots`."""
        if len(slots.order) == 1:
            self.view(slots.order[0]).add_(1)
            return
        for chunk, inside in slots.inside.items():
            self._chunks[chunk][inside] += 1

    def copy(self, slots: Slots) -> dict[int, Tensor]:
        """Return what `restore` takes to make the counters at `slots` what they are now."""
        return {chunk: self._chunks[chunk][inside] for chunk, inside in slots.inside.items()}

    def restore(self, slots: Slots, copy: dict[int, Tensor]) -> None:
        """Make the counters at `slots` what they were."""
        for chunk, inside in slots.inside.items():
            self._chunks[chunk][inside] = copy[chunk]
