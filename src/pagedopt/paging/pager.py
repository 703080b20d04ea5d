"""The paging engine, written down; and `Pager`, the part of it that optimizers share.

    Pager  budgets of one configuration
      ├── DevicePager  one device, as optimizers use it: one turn at a time    device.py, mending.py
      │     └── Residency    which pages are in frames: all transitions        residency.py
      │           ├── PageTable    what is known about each page               table.py      numbers, no tensors
      │           ├── FramePool    frames, charged before allocated            frames.py     tensors, no policy
      │           ├── Replacement  which page leaves next                      replacement.py
      │           ├── Tier         where pages are that have no frame          pagedopt.tiers
      │           ├── Streams      the order of work on the device             pagedopt.tiers.streams
      │           └── PageEvent    what observers are told                     events.py
      ├── AutomaticBudget  frames from step to step on an accelerator          automatic.py
      └── Ledger       RAM, shared by all devices                              budget.py
    sweep              one pass over pages, in order                           sweep.py

The states of a page, and what moves it from one to the next:

                open_page
                    │
                    ▼      pin, prefetch              pin
      ┌────────► EVICTED ─────────────────► READING ─────────► RESIDENT ◄─┐
      │             ▲                          │                   │      │
      │             └────── the read failed ───┘        frames are │      │ pin
      │                                             needed next    ▼      │
      └─────────────────────────────────────────────────────── LEAVING ───┘
              another page takes the frame, after the write

      any state ──── a write failed, or fail ────► LOST ──── release ────► gone

| from | to | when | function |
|---|---|---|---|
| (none) | EVICTED | a page is opened; with room in the tier once pages outnumber frames | `new_page` |
| EVICTED | READING | a pin or prefetch finds a frame for it | `occupy`, `read_ahead`, `_fill` |
| READING | RESIDENT | its read ended; a page never written is zeroed instead | `_end_read` |
| READING | EVICTED | its read failed | `_end_read` |
| RESIDENT | LEAVING | at an unpin: the pages expected next need more frames than are left | `_write_behind`, `_leave` |
| RESIDENT | LEAVING | a pin found no frame left | `_taken_frame`, `_leave` |
| LEAVING | RESIDENT | it is pinned before its frame was taken; the write is waited for | `settle` |
| LEAVING | EVICTED | its frame is taken, or given up; what fills it next follows its write | `_evict`, `trim` |
| any | LOST | its write failed; or whoever was in it says so | `lose` |
| any | gone | its last claim is released and its last pin given back | `drop` |
| any | what is certain of it | the turn before was cut short, by Ctrl-C for one | `mending.mend` |

A dirty page that begins to leave is written at once (`_write`); one that stays is not written at all.

What holds between any two turns (a turn is one call under the pager's lock; `tests/paging` checks all of it):

1. A frame belongs to one page, or to none.
2. Frames of pages + idle frames + frames not yet allocated = frames charged to the budget.
3. A page has a frame exactly if it is READING, RESIDENT or LEAVING, or LOST with somebody still in it.
4. A pinned page is RESIDENT or LOST, and no transfer touches its frame.
5. A dirty page is RESIDENT: what leaves has been handed to its tier.
6. The pages that are LEAVING stand in line: the first that began to leave is the first whose frame is taken.
7. What `Replacement` may name is READING or RESIDENT, and not pinned.
8. A frame is read into only after the write that still needs it; a page is read only after it was written.
9. While a page is LOST nothing is pinned.
10. A tier is open only while there are more pages than frames, or were since it opened, and then every page has room
    in it. What a pager holds goes with its last page.
11. On an accelerator "ended" means ended for whoever goes on: streams wait for events, and the host does not.
    All that was done with a frame comes before what `Frame.stream` is given next, its transfer under way aside.
12. A turn that was cut short leaves none of this to be relied on, and the next one begins by making it hold again.
13. No state is ever only in a write that nobody waits for: every write is waited for, and its failure is a LOST page.

Why a write is waited for by the I/O thread and not by the caller: the page just updated is the best one to leave (see
`replacement`), so its frame is the next to be filled. The read into it is started at once and told to follow the write,
and by the time the page is pinned both are over. For that the frames must hold the page in use, `prefetch_depth` pages
being read and as many being written: the working set, and the least budget there is.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from pagedopt.paging.automatic import AllocatorReader, AutomaticBudget, Reading, can_be_read
from pagedopt.paging.budget import Ledger, automatic_device_nbytes, automatic_host_nbytes
from pagedopt.paging.config import DEFAULT_PREFETCH_DEPTH, PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.frames import FramePool
from pagedopt.tiers.base import Tier
from pagedopt.tiers.buffers import new_host_buffer
from pagedopt.tiers.disk import DiskTier
from pagedopt.tiers.host import HostTier
from pagedopt.tiers.slabs import PinnedMemory, Slabs
from pagedopt.tiers.split import SplitTier
from pagedopt.tiers.staged import MAX_RING_PAGES, StagedDiskTier
from pagedopt.tiers.streams import DeviceStreams, InOrder, Streams, has_streams

__all__ = ["DevicePager", "Pager", "shared_pager"]


class Pager:
    """One set of budgets: optimizers that use the same pager share its frames, its RAM and its spill files.

    Optimizers made with equal options share one without being told; pass a pager to keep their budgets apart from
    others', or to be sure. Nothing is opened or allocated before the first page. A copy or an unpickled pager is a new
    one of the same config, with no pages.

    Args:
        page_size: bytes of a page, an int or text such as `"4MiB"`, rounded up to a multiple of 4096 and to at least
            64 KiB. None: 16 MiB, and at most 1/16 of an explicit budget, but for frames in RAM at least 2 MiB where
            the budget has 20 MiB or more; 64 MiB with `max_gpu_memory=0`.
        max_gpu_memory: bytes of frames on each accelerator; 0: unlimited, None: automatic.
        max_host_memory: bytes of RAM that all devices share; 0: unlimited, None: what is free less a reserve.
        spill_dir: folder of the spill files; None: the system's temporary folder.
        prefetch_depth: pages read ahead of the update, and as many written behind it.

    Raises:
        TypeError, ValueError: an argument that is wrong, named with its value.
    """

    def __init__(
        self,
        *,
        page_size: int | str | None = None,
        max_gpu_memory: int | str | None = None,
        max_host_memory: int | str | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        prefetch_depth: int | str | None = DEFAULT_PREFETCH_DEPTH,
    ) -> None:
        self.config = PagingConfig.parse(
            page_size=page_size,
            max_gpu_memory=max_gpu_memory,
            max_host_memory=max_host_memory,
            spill_dir=spill_dir,
            prefetch_depth=prefetch_depth,
        )
        config = self.config
        self._lock = threading.Lock()
        self._on: dict[torch.device, DevicePager] = {}
        floor = config.working_set * config.page_nbytes(torch.device("cpu"))
        self._host = Ledger(_limit(config.max_host_memory, automatic_host_nbytes, floor))

    def on(self, device: torch.device) -> DevicePager:
        """Return the pager of `device`, the same one every time.

        Raises:
            BudgetError: an explicit budget cannot hold the working set of this device.
        """
        device = _with_index(device)
        with self._lock:
            if device not in self._on:
                self.config.check_budget(device)
                self._on[device] = self._new_device_pager(device)
            return self._on[device]

    def _new_device_pager(self, device: torch.device) -> DevicePager:
        return _device_pager(self.config, device, self._host)

    def devices(self) -> dict[torch.device, DevicePager]:
        """Return the pagers made so far by device."""
        with self._lock:
            return dict(self._on)

    @property
    def host_budget_nbytes(self) -> int | None:
        """Bytes of RAM that all devices share; None: unlimited, or automatic and not yet measured."""
        return self._host.known_limit

    @classmethod
    def from_config(cls, config: PagingConfig) -> Pager:
        """Return a new pager of `config`."""
        return cls(**asdict(config))

    def close(self) -> None:
        """Drop all pages, frames, files and threads, whoever uses them. May be called again."""
        for pager in self.devices().values():
            pager.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Pager.from_config, (self.config,)

    def __repr__(self) -> str:
        return f"Pager({self.config})"


_shared: weakref.WeakValueDictionary[tuple[int, PagingConfig], Pager] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def shared_pager(config: PagingConfig) -> Pager:
    """Return the pager of all optimizers of this process with an equal config; it dies with the last of them."""
    key = os.getpid(), config  # a forked child has its own: its parent's spill file is not its to write
    with _shared_lock:
        pager = _shared.get(key)
        if pager is None:
            pager = _shared[key] = Pager.from_config(config)
        return pager


def _device_pager(config: PagingConfig, device: torch.device, host: Ledger) -> DevicePager:
    if device.type == "cpu":
        return cpu_pager(config, host)
    if not has_streams(device):
        if device.type != "meta":  # which has no bytes that could move
            _say_that_copies_wait(device.type)
        return accelerator_pager(config, device, host, InOrder())
    return accelerator_pager(config, device, host, DeviceStreams(device))


def cpu_pager(config: PagingConfig, host: Ledger) -> DevicePager:
    """Return the pager of parameters in RAM, whose frames are charged to `host`."""
    device = torch.device("cpu")
    page_nbytes = config.page_nbytes(device)
    return DevicePager(
        page_nbytes=page_nbytes,
        prefetch_depth=config.prefetch_depth,
        frames=FramePool(page_nbytes, new_host_buffer, host, allocates_zeros=True),
        open_tier=partial(DiskTier, page_nbytes, config.spill_dir),
        budget_name=config.frame_budget(device)[0],
    )


def accelerator_pager(
    config: PagingConfig,
    device: torch.device,
    host: Ledger,
    streams: Streams,
    read: Callable[[], Reading] | None = None,
) -> DevicePager:
    """Return the pager of an accelerator.

    Args:
        config: budgets and sizes.
        device: where frames are.
        host: what pinned memory is charged to.
        streams: of the device.
        read: tells an automatic budget about memory; None: the device's own allocator does, if it can.
    """
    page_nbytes = config.page_nbytes(device)
    name, budget = "max_gpu_memory", config.max_gpu_memory
    floor = config.working_set * page_nbytes
    if read is None and budget is None and can_be_read(device):
        read = AllocatorReader(device)
    automatic = AutomaticBudget(read, floor) if budget is None and read is not None else None
    if automatic is not None:
        ledger = automatic.ledger
    else:
        ledger = Ledger(_limit(budget, partial(automatic_device_nbytes, device), floor))
    return DevicePager(
        page_nbytes=page_nbytes,
        prefetch_depth=config.prefetch_depth,
        frames=FramePool(page_nbytes, partial(_new_device_buffer, device), ledger),
        open_tier=partial(_host_and_disk, config, page_nbytes, host, streams),
        budget_name=name,
        streams=InOrder() if budget == 0 else streams,  # everything is resident, and nothing is ever copied
        automatic=automatic,
    )


def _host_and_disk(config: PagingConfig, page_nbytes: int, host: Ledger, streams: Streams) -> Tier:
    pinned = PinnedMemory() if isinstance(streams, DeviceStreams) else None
    slabs = Slabs(
        page_nbytes,
        host.charge,
        host.refund,
        allocate=pinned or new_host_buffer,
        finish=streams.finish_copies,
        give_back=pinned.give_back if pinned is not None else _give_nothing_back,
    )
    disk = StagedDiskTier(
        page_nbytes,
        config.spill_dir,
        slabs=slabs,
        streams=streams,
        ring_pages=ring_pages(config, page_nbytes, host.known_limit),
    )
    return SplitTier(HostTier(slabs, streams), disk)


def ring_pages(config: PagingConfig, page_nbytes: int, host_nbytes: int | None) -> int:
    """Return the pages of each of the disk's two rings: what a sweep can use, both within half of a budget for RAM."""
    wanted = min(config.prefetch_depth + 1, MAX_RING_PAGES)
    return wanted if host_nbytes is None else max(min(wanted, host_nbytes // page_nbytes // 4), 1)


def _give_nothing_back() -> None:
    """Memory that is not pinned goes back to the system by itself."""


@lru_cache
def _say_that_copies_wait(device_type: str) -> None:
    warnings.warn(
        f"{device_type} has no streams that pagedopt could copy on, so pages move while the device waits; "
        "max_gpu_memory=0 keeps all state there",
        stacklevel=2,
    )


def _new_device_buffer(device: torch.device, nbytes: int) -> Tensor:
    with torch.inference_mode(mode=False):  # an I/O thread copies into it, and is in no such mode
        return torch.empty(nbytes, dtype=torch.uint8, device=device)


def _limit(budget: int | None, automatic: Callable[[], int], floor: int) -> int | Callable[[], int] | None:
    """Return what a `Ledger` takes for a budget; an automatic one is never less than the working set, `floor`."""
    if budget is None:
        return lambda: max(automatic(), floor)
    return budget or None


def _with_index(device: torch.device) -> torch.device:
    """Return `device` as its tensors say it: `cuda` is the current one, and there is only one CPU."""
    return torch.device("cpu") if device.type == "cpu" else torch.empty(0, device=device).device
