"""What a step needs and no step changes: for the parameters of one device, the segment table of every page.

A plan is made when parameters, their state or their overrides have changed, and costs time by segment; a step with a
plan costs Python by parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels.args import Column
from pagedopt.layout import Segment
from pagedopt.optim.counters import Slots
from pagedopt.optim.store import Record
from pagedopt.paging.pager import DevicePager


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where the hyperparameters of some parameters are read at every step: their group, and what overrides it."""

    group: dict[str, Any]
    overrides: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.overrides[name] if name in self.overrides else self.group[name]


@dataclass(slots=True, eq=False)
class Plan:
    """The parameters of one device that have state, and the pages it lies in.

    Attributes:
        params, records, sources, clippings: by operand.
        pages: every page, in the order of the sweep.
        tables: the segment table of each page, int64 [segments, len(Column)], on the CPU.
        residents: the operands that have a segment in each page.
        tensorwise: the pages with tensor-wise segments, which need a measuring sweep first.
        slots: the step counters of all operands.
        is_distributed, is_clipped: whether any operand is.
        distinct_sources, source_of: the sources, each once, and which of them is each operand's.
        has_values: whether anything of each operand is here.
    """

    device: torch.device
    pager: DevicePager
    params: list[Tensor]
    records: list[Record]
    sources: list[Source]
    clippings: list[int]
    pages: list[int] = field(default_factory=list)
    tables: dict[int, Tensor] = field(default_factory=dict)
    residents: dict[int, list[int]] = field(default_factory=dict)
    segments: dict[int, list[tuple[int, Segment]]] = field(default_factory=dict)
    tensorwise: list[int] = field(default_factory=list)
    slots: Slots = field(init=False)
    is_distributed: bool = field(init=False)
    is_clipped: bool = field(init=False)
    distinct_sources: list[Source] = field(init=False)
    source_of: list[int] = field(init=False)
    has_values: list[bool] = field(init=False)
    _devices: list[int] = field(init=False)
    _shapes: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        for operand, record in enumerate(self.records):
            for page, segment in record.segments:
                self.segments.setdefault(page, []).append((operand, segment))
        for page, inside in self.segments.items():
            self.pages.append(page)
            rows = [segment_row(operand, self.records[operand], segment) for operand, segment in inside]
            self.tables[page] = torch.tensor(rows, dtype=torch.int64, device="cpu")
            self.residents[page] = [operand for operand, _ in inside]
            if any(self.records[operand].state_format is StateFormat.TENSORWISE8 for operand, _ in inside):
                self.tensorwise.append(page)

        self.slots = Slots([record.slot for record in self.records])
        self.is_distributed = any(record.part.is_distributed for record in self.records)
        self.is_clipped = any(percentile < 100 for percentile in self.clippings)
        distinct = {id(source): source for source in self.sources}
        index_of = {key: index for index, key in enumerate(distinct)}
        self.distinct_sources = list(distinct.values())
        self._devices = [record.device.index or 0 if record.device.type != "cpu" else -1 for record in self.records]
        self._shapes = [record.part.local_shape for record in self.records]
        self.has_values = [math.prod(shape) > 0 for shape in self._shapes]
        self.source_of = [index_of[id(source)] for source in self.sources]

    def fits(self, params: Sequence[Tensor]) -> bool:
        """Return whether `params`, which are this plan's, are still of the device and shape that it was made for."""
        return list(map(Tensor.get_device, params)) == self._devices and [p.shape for p in params] == self._shapes

    def live_pages(self, pages: Sequence[int], is_live: Sequence[bool]) -> Sequence[int]:
        """Return those of `pages` in which at least one operand is live."""
        if all(is_live):
            return pages
        return [page for page in pages if any(is_live[operand] for operand in self.residents[page])]


def segment_row(operand: int, record: Record, segment: Segment, *, base: int | None = None) -> list[int]:
    """Return the table row of a segment whose first value is value `base` of its operand (default: where it starts)."""
    row = [0] * len(Column)
    row[Column.OPERAND] = operand
    row[Column.START] = segment.start
    row[Column.NUMEL] = segment.numel
    row[Column.ROW_WIDTH] = record.grid.row_width
    row[Column.FORMAT] = record.state_format
    row[Column.FIELD_0 : Column.FIELD_0 + len(segment.offsets)] = segment.offsets
    row[Column.BASE] = segment.start if base is None else base
    return row
