"""A recording of the pager, and from it which page was where at each update of a page.

page 0   R . . . . . R . . . . .      one column an update (a pin), one row a page
page 1   # # # # # # # # # # # #      # resident   R read   W written back   . away
page 2   W . R W . . . . R W . .

A column is an update and not a number of seconds: between two steps nothing moves, however long the model takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from pagedopt.paging.events import PageEvent

END_OF_STEP = "step"
"""An event of the recording that is nobody's page."""


class Event(NamedTuple):
    """What the pager told: `seconds` on an arbitrary clock, an event's name, a page."""

    seconds: float
    name: str
    page: int


class Recording:
    """Writes down what a pager tells: give it to `observe`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.events: list[Event] = []
        self._clock = clock

    def __call__(self, event: PageEvent) -> None:
        self.events.append(Event(self._clock(), event.name, event.page))

    def end_step(self) -> None:
        """Note that a step of the optimizer ended."""
        self.events.append(Event(self._clock(), END_OF_STEP, -1))


class Cell(IntEnum):
    """What a page was during one update of a page. Of several, the highest."""

    AWAY = 0
    RESIDENT = 1
    WRITTEN = 2
    READ = 3


@dataclass(frozen=True, slots=True)
class Residency:
    """Where each page was.

    Attributes:
        columns: for each update in turn, the cell of each page.
        step_ends: how many updates had been made when each step ended.
    """

    columns: list[list[Cell]]
    step_ends: list[int]


_ARRIVES = frozenset({"resident", "read", "pin"})  # a new page is never read
_LEAVES = frozenset({"evict", "drop"})
_MOVES = {"read": Cell.READ, "write": Cell.WRITTEN}


def residency(events: Iterable[Event], *, num_pages: int) -> Residency:
    """Return where each of `num_pages` pages was while each was updated: a column lasts from one pin to the next.

    What happens before a step's first pin is seen in that step's first column.
    """
    drawing = _Drawing(num_pages)
    for event in events:
        drawing.take(event)
    return Residency(drawing.columns, drawing.step_ends)


class _Drawing:
    """The residency so far, and the column that is not yet complete."""

    def __init__(self, num_pages: int) -> None:
        self.columns: list[list[Cell]] = []
        self.step_ends: list[int] = []
        self._num_pages = num_pages
        self._resident: set[int] = set()
        self._moved: dict[int, Cell] = {}
        self._has_pin = False

    def take(self, event: Event) -> None:
        if event.name in ("pin", END_OF_STEP) and self._has_pin:
            self._close_column()
        if event.name == END_OF_STEP:
            self.step_ends.append(len(self.columns))
        else:
            self._move(event)
        self._has_pin |= event.name == "pin"

    def _move(self, event: Event) -> None:
        if event.name in _ARRIVES:
            self._resident.add(event.page)
        if event.name in _LEAVES:
            self._resident.discard(event.page)
        if event.name in _MOVES:
            self._moved[event.page] = max(self._moved.get(event.page, Cell.AWAY), _MOVES[event.name])

    def _close_column(self) -> None:
        self.columns.append([self._cell(page) for page in range(self._num_pages)])
        self._moved.clear()
        self._has_pin = False

    def _cell(self, page: int) -> Cell:
        return self._moved.get(page, Cell.RESIDENT if page in self._resident else Cell.AWAY)
