"""An optimizer's pages without their bytes: the very code that trains, over frames and tiers that hold nothing.

    real        optimizer ── store ── pager ── frames: RAM or GPU memory ── tiers: RAM, spill file
    rehearsal   optimizer ── store ── pager ── frames: no memory         ── tiers: numbers

So what a rehearsal counts is what training will count, to the byte: there is no second account of the layout, of the
budgets or of which page moves when. It costs some ten microseconds for each page of each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pagedopt.checkpoint.layout import SavedParam, lay_out, nbytes_of, spread_over_files
from pagedopt.checkpoint.writing import MAX_FILE_NBYTES
from pagedopt.costs.empty import EmptyPager
from pagedopt.costs.weights import Weight
from pagedopt.optim.adamw import AdamW, PagedAdamW
from pagedopt.optim.plan import Plan, Source
from pagedopt.optim.statistics import MemoryStats
from pagedopt.optim.store import Record, Store
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.stats import PagingStats
from pagedopt.paging.sweep import sweep
from pagedopt.tiers.base import Home

OptimizerClass = type[AdamW] | type[PagedAdamW]

STEADY_STEP = 3
"""From this step on every step moves the same pages: the first makes them, the second inherits its order."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What is where at the end of a part of a run, and what that part moved.

    Attributes:
        frame_nbytes: bytes of frames allocated, on the parameters' device.
        host_nbytes: bytes of pages whose home is RAM (accelerators only).
        ram_nbytes: bytes charged to `max_host_memory`: the frames of a CPU's parameters; for an accelerator's, pinned
            memory for pages whose home is RAM and for those that pass through it to the disk.
        disk_nbytes: bytes of pages whose home is the disk.
        file_nbytes: bytes of the spill file, which grows in extents.
        read: bytes moved from each tier, by `"host"` and `"disk"`.
        written: bytes moved to each tier, the same way.
    """

    frame_nbytes: int
    host_nbytes: int
    ram_nbytes: int
    disk_nbytes: int
    file_nbytes: int
    read: Mapping[Home, int]
    written: Mapping[Home, int]

    @property
    def moved_nbytes(self) -> int:
        """Bytes moved both ways."""
        return sum(self.read.values()) + sum(self.written.values())


@dataclass(frozen=True, slots=True)
class Values:
    """How many values are kept how: what computing a step costs is by these.

    Attributes:
        state_format: such as `"blockwise8"` or `"float32"`.
        dtype: of the parameters, such as `"bfloat16"`.
        count: values that are kept so.
    """

    state_format: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class Account:
    """All that a rehearsal counts.

    Attributes:
        page_nbytes: bytes of a page.
        num_pages: pages that the state takes.
        num_frames: frames that are taken for them.
        budget_nbytes: the most that frames may take; None: unlimited.
        state_nbytes: bytes of all segments, without what pages leave free.
        construction: what is where when the optimizer is constructed.
        first_step: what is where after the first step, and what it moved.
        steady_step: the same for each later step.
        save: the same for `pagedopt.save`.
        load: the same for `pagedopt.load` into a new optimizer.
        checkpoint_nbytes: bytes of the data files that `save` writes.
        sweeps: passes over the pages in a step: 2 with tensor-wise 8-bit state, which measures first.
        values: how many values are kept how.
        memory: what `optimizer.memory_stats()` says after a step.
        paging: what `optimizer.paging_stats()` counts in a later step.
    """

    page_nbytes: int
    num_pages: int
    num_frames: int
    budget_nbytes: int | None
    state_nbytes: int
    construction: Phase
    first_step: Phase
    steady_step: Phase
    save: Phase
    load: Phase
    checkpoint_nbytes: int
    sweeps: int
    values: tuple[Values, ...]
    memory: MemoryStats
    paging: PagingStats


def rehearse(
    weights: Sequence[Weight],
    optimizer_class: OptimizerClass,
    config: PagingConfig | None,
    device: torch.device,
    arguments: dict[str, Any],
) -> Account:
    """Construct, step three times, save and load, and return what each held and moved.

    Args:
        weights: the parameters that train.
        optimizer_class: one of the six.
        config: how the pager is configured; None: everything stays resident.
        device: where the parameters are; it need not be here.
        arguments: further ones of the optimizer.

    Raises:
        BudgetError: a budget is smaller than the working set. ValueError: an argument is wrong.
    """
    pager = EmptyPager(config or PagingConfig.resident(), device)
    params = _stand_ins(weights, device)
    optimizer = optimizer_class(_groups(weights, params), **_paged(optimizer_class, arguments), pager=pager)
    construction = _phase(pager)
    optimizer.init_state()  # as the first step does it: all parameters are placed, then the pages are swept
    with optimizer.settled() as store:
        records = [store.records[param] for param in params]
        plan = Plan(
            params[0].device, pager.the_one, params, records, [Source({}, {})] * len(params), [100] * len(params)
        )
        phases = [_step(pager, plan) for _ in range(STEADY_STEP)]
        memory, paging = optimizer.memory_stats(), optimizer.paging_stats()
        save = _save(pager, records)
    account = Account(
        page_nbytes=pager.the_one.page_nbytes,
        num_pages=memory.pages,
        num_frames=pager.frames.num_charged,
        budget_nbytes=pager.frames.budget_nbytes,
        state_nbytes=sum(record.nbytes for record in records),
        construction=construction,
        first_step=phases[0],
        steady_step=phases[-1],
        save=save,
        load=_load(pager.config, device, params, records),
        checkpoint_nbytes=_checkpoint_nbytes(weights, records),
        sweeps=2 if plan.tensorwise else 1,
        values=_values(weights, records),
        memory=memory,
        paging=paging,
    )
    optimizer.close()
    return account


def _phase(pager: EmptyPager) -> Phase:
    """Return what is where, and what was moved since the statistics were reset."""
    memory, stats = pager.the_one.memory, pager.the_one.stats
    return Phase(
        frame_nbytes=memory.frame_nbytes,
        host_nbytes=memory.host_nbytes,
        ram_nbytes=pager.ram_nbytes,
        disk_nbytes=memory.disk_nbytes,
        file_nbytes=pager.disk.file_nbytes,
        read=dict(stats.bytes_read),
        written=dict(stats.bytes_written),
    )


def _step(pager: EmptyPager, plan: Plan) -> Phase:
    """Move the pages as `optim.step` does."""
    pager.the_one.reset_stats()
    for pages, dirty in ((plan.tensorwise, False), (plan.pages, True)):
        with closing(sweep(pager.the_one, pages, dirty=dirty)) as frames:
            _exhaust(frames)
    return _phase(pager)


def _save(pager: EmptyPager, records: Sequence[Record]) -> Phase:
    """Move the pages as `checkpoint.saving` does: by parameter."""
    pager.the_one.reset_stats()
    for record in records:
        _visit(record, dirty=False)
    return _phase(pager)


def _load(config: PagingConfig, device: torch.device, params: Sequence[Tensor], records: Sequence[Record]) -> Phase:
    """Move the pages as `checkpoint.saving` does into a new optimizer: each parameter is placed, then filled."""
    pager = EmptyPager(config, device)
    store = Store(pager)
    for param, like in zip(params, records, strict=True):
        _visit(store.place(param, like.state_format, part=like.part, device=like.device), dirty=True)
    phase = _phase(pager)
    store.clear()
    return phase


def _visit(record: Record, *, dirty: bool) -> None:
    """Move the pages as `Store.segments` does, of which nothing is read or written here."""
    with closing(sweep(record.pager, [page for page, _ in record.segments], dirty=dirty)) as pages:
        _exhaust(pages)


def _exhaust(pages: Iterator[object]) -> None:
    for _ in pages:
        continue


def _checkpoint_nbytes(weights: Sequence[Weight], records: Sequence[Record]) -> int:
    saved = [
        SavedParam(number, weight.name, record.part.local_shape, record.state_format, 0.0, has_gnorms=False, file=0)
        for number, (weight, record) in enumerate(zip(weights, records, strict=True))
    ]
    files: dict[int, list[SavedParam]] = {}
    for number, file in spread_over_files([(param.id, nbytes_of(param)) for param in saved], MAX_FILE_NBYTES):
        files.setdefault(file, []).append(saved[number])
    return sum(lay_out(params).nbytes for params in files.values())


def _values(weights: Sequence[Weight], records: Sequence[Record]) -> tuple[Values, ...]:
    counts: dict[tuple[str, str], int] = {}
    for weight, record in zip(weights, records, strict=True):
        key = record.state_format.name.lower(), str(weight.dtype).removeprefix("torch.")
        counts[key] = counts.get(key, 0) + record.grid.numel
    return tuple(Values(*key, count) for key, count in sorted(counts.items()))


def _stand_ins(weights: Sequence[Weight], device: torch.device) -> list[Tensor]:
    """Return a parameter without memory for each weight: budgets are told apart by whether the device is the CPU."""
    if device.type == "cpu":
        return [Parameter(torch.empty((), dtype=w.dtype, device="cpu").expand(w.shape)) for w in weights]
    return [Parameter(torch.empty(w.shape, dtype=w.dtype, device="meta")) for w in weights]


def _groups(weights: Sequence[Weight], params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return a group for each run of weights with the same options, so that the order stays."""
    groups: list[dict[str, Any]] = []
    for weight, param in zip(weights, params, strict=True):
        options = dict(weight.options)
        if not groups or {k: v for k, v in groups[-1].items() if k != "params"} != options:
            groups.append({"params": [], **options})
        groups[-1]["params"].append(param)
    return groups


def _paged(optimizer_class: OptimizerClass, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if issubclass(optimizer_class, PagedAdamW) else {**arguments, "is_paged": True}
