"""An optimizer's pages without their bytes: the very code that trains, over frames and tiers that hold nothing.

    real        optimizer ── store ── pager ── frames: RAM or GPU memory ── tiers: RAM, spill file
    rehearsal   optimizer ── store ── pager ── frames: no memory         ── tiers: numbers

So what a rehearsal counts is what training will count, to the byte: there is no second account of the layout, of the
budgets or of which page moves when. It costs some ten microseconds for each page of each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pagedopt.checkpoint.layout import SavedParam, lay_out, nbytes_of, spread_over_files
from pagedopt.checkpoint.writing import MAX_FILE_NBYTES
from pagedopt.costs.weights import Weight
from pagedopt.errors import SpillError
from pagedopt.optim.adamw import AdamW, PagedAdamW
from pagedopt.optim.plan import Plan, Source
from pagedopt.optim.statistics import MemoryStats
from pagedopt.optim.store import Record, Store
from pagedopt.paging.budget import Ledger, automatic_device_nbytes
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.frames import FramePool
from pagedopt.paging.pager import Pager
from pagedopt.paging.stats import PagingStats
from pagedopt.paging.sweep import sweep
from pagedopt.tiers.base import EndedTransfer, Home, Tier, TierUsage, Transfer
from pagedopt.tiers.disk import extent_nbytes
from pagedopt.tiers.split import SplitTier

OptimizerClass = type[AdamW] | type[PagedAdamW]

STEADY_STEP = 3
"""From this step on every step moves the same pages: the first makes them, the second inherits its order."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What is where at the end of a part of a run, and what that part moved.

    Attributes:
        frame_nbytes: of frames allocated, on the parameters' device.
        host_nbytes: of pages whose home is RAM (accelerators only).
        disk_nbytes: of pages whose home is the disk; `file_nbytes`: of the spill file, which grows in extents.
        read, written: bytes moved from and to each tier, by `"host"` and `"disk"`.
    """

    frame_nbytes: int
    host_nbytes: int
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
    """How many values are kept how: what computing a step costs is by these."""

    state_format: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class Account:
    """All that a rehearsal counts.

    Attributes:
        page_nbytes: of a page; `num_pages` of them, of which `num_frames` can be in frames.
        state_nbytes: of all segments, without what pages leave free.
        construction, first_step, steady_step, save, load: what is where after each, and what it moved.
        checkpoint_nbytes: of the data files that `save` writes.
        sweeps: passes over the pages in a step: 2 with tensor-wise 8-bit state, which measures first.
        memory: what `optimizer.memory_stats()` says after a step, and `paging` what `paging_stats()` says of one.
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
    pager = _EmptyPager(config or PagingConfig.resident(), device)
    params = _stand_ins(weights, device)
    optimizer = optimizer_class(_groups(weights, params), **_paged(optimizer_class, arguments), pager=pager)
    construction = pager.phase()
    optimizer.init_state()  # as the first step does it: all parameters are placed, then the pages are swept
    with optimizer.settled() as store:
        records = [store.records[param] for param in params]
        plan = Plan(
            params[0].device, pager.the_one, params, records, [Source({}, {})] * len(params), [100] * len(params)
        )
        phases = [_step(pager, plan) for _ in range(STEADY_STEP)]
        memory, paging = optimizer.memory_stats(), optimizer.paging_stats()
        save = _save(pager, store, records)
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


def _step(pager: _EmptyPager, plan: Plan) -> Phase:
    """Move the pages as `optim.step` does."""
    pager.the_one.reset_stats()
    for pages, dirty in ((plan.tensorwise, False), (plan.pages, True)):
        with closing(sweep(pager.the_one, pages, dirty=dirty)) as frames:
            _exhaust(frames)
    return pager.phase()


def _save(pager: _EmptyPager, store: Store, records: Sequence[Record]) -> Phase:
    """Move the pages as `checkpoint.saving` does: by parameter."""
    pager.the_one.reset_stats()
    for record in records:
        with closing(store.segments(record, dirty=False)) as segments:
            _exhaust(segments)
    return pager.phase()


def _load(config: PagingConfig, device: torch.device, params: Sequence[Tensor], records: Sequence[Record]) -> Phase:
    """Move the pages as `checkpoint.saving` does into a new optimizer: each parameter is placed, then filled."""
    pager = _EmptyPager(config, device)
    store = Store(pager)
    for param, like in zip(params, records, strict=True):
        record = store.place(param, like.state_format, part=like.part, device=like.device)
        with closing(store.segments(record, dirty=True)) as segments:
            _exhaust(segments)
    phase = pager.phase()
    store.clear()
    return phase


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


class _EmptyPager(Pager):
    """A pager of one device whose pages have no bytes: every stand-in is on that device."""

    def __init__(self, config: PagingConfig, device: torch.device) -> None:
        super().__init__(**asdict(config))
        self._planned = device
        self.the_one = self.on(torch.device("cpu" if device.type == "cpu" else "meta"))

    def _new_device_pager(self, device: torch.device) -> DevicePager:
        page_nbytes = self.config.page_nbytes(device)
        name, budget = self.config.frame_budget(device)
        buffer = torch.empty(page_nbytes, dtype=torch.uint8, device="meta")
        ledger = self._host if device.type == "cpu" else Ledger(self._device_limit(budget, page_nbytes))
        self.frames = FramePool(page_nbytes, lambda _: buffer, ledger)
        self._disk = _EmptyDisk(page_nbytes)
        on_accelerator = SplitTier(_EmptyHost(self._host), self._disk)
        tier: Tier = self._disk if device.type == "cpu" else on_accelerator
        return DevicePager(
            page_nbytes=page_nbytes,
            prefetch_depth=self.config.prefetch_depth,
            frames=self.frames,
            open_tier=lambda: tier,
            budget_name=name,
        )

    def _device_limit(self, budget: int | None, page_nbytes: int) -> int | None:
        if budget is None:
            return max(automatic_device_nbytes(self._planned), self.config.working_set * page_nbytes)
        return budget or None

    def phase(self) -> Phase:
        """Return what is where, and what was moved since the statistics were reset."""
        memory, stats = self.the_one.memory, self.the_one.stats
        return Phase(
            frame_nbytes=memory.frame_nbytes,
            host_nbytes=memory.host_nbytes,
            disk_nbytes=memory.disk_nbytes,
            file_nbytes=self._disk.file_nbytes,
            read=stats.bytes_read,
            written=stats.bytes_written,
        )


class _EmptyTier:
    """What the two tiers share: transfers that moved nothing and are over."""

    def __init__(self) -> None:
        self._reserved: dict[int, int] = {}

    def describe(self) -> str:
        return "nothing is moved"

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:  # noqa: ARG002
        return _OVER

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:  # noqa: ARG002
        return _OVER

    def release(self, page: int) -> None:
        del self._reserved[page]

    def close(self) -> None:
        self._reserved.clear()


_OVER = EndedTransfer()


class _EmptyHost(_EmptyTier):
    """Charges RAM as `tiers.host` does."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    @property
    def usage(self) -> TierUsage:
        return TierUsage(host_nbytes=sum(self._reserved.values()))

    def home(self, page: int) -> Home:  # noqa: ARG002
        return "host"

    def reserve(self, page: int, nbytes: int) -> None:
        if not self._ledger.charge(nbytes):
            raise SpillError("max_host_memory has no room for another page")
        self._reserved[page] = nbytes


class _EmptyDisk(_EmptyTier):
    """Grows as the spill file of `tiers.disk` does."""

    def __init__(self, page_nbytes: int) -> None:
        super().__init__()
        self._page_nbytes = page_nbytes
        self.file_nbytes = 0

    @property
    def usage(self) -> TierUsage:
        return TierUsage(disk_nbytes=len(self._reserved) * self._page_nbytes)

    def home(self, page: int) -> Home:  # noqa: ARG002
        return "disk"

    def reserve(self, page: int, nbytes: int) -> None:
        self._reserved[page] = nbytes
        if len(self._reserved) * self._page_nbytes > self.file_nbytes:
            self.file_nbytes += extent_nbytes(self.file_nbytes, self._page_nbytes)
