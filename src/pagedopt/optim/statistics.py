"""The numbers that an optimizer tells about its pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from pagedopt.optim.store import Store
from pagedopt.paging.pager import Pager
from pagedopt.paging.stats import PagingStats


class MemoryStats(NamedTuple):
    """Where the state of one optimizer is. The first two are qlora-rs' `memory_stats()`.

    Attributes:
        host_bytes: bytes of state off the accelerator, in RAM and on disk.
        gpu_bytes: bytes of state in frames on accelerators.
        pages: pages that hold its state.
        resident_pages: those of them that are in frames now.
        disk_bytes: bytes of spill file that its pages hold.
        budget_bytes: the most that the frames of its pagers may take, shared with the optimizers that share them; None:
            unlimited, or automatic and not known before the first step.
    """

    host_bytes: int
    gpu_bytes: int
    pages: int
    resident_pages: int
    disk_bytes: int
    budget_bytes: int | None


def memory_stats(store: Store, devices: Iterable[torch.device]) -> MemoryStats:
    """Return where the state in `store`, of parameters on `devices`, is."""
    host = gpu = pages = resident = disk = 0
    for device, own in store.pages().items():
        pager = store.pager.on(device)
        memory = pager.memory_of(own)
        on_accelerator = device.type != "cpu"
        gpu += memory.frame_nbytes if on_accelerator else 0
        # In RAM a frame is a copy of its page on disk, or the page itself where there is no disk tier: count it once.
        host += memory.host_nbytes + memory.disk_nbytes if on_accelerator else memory.num_pages * pager.page_nbytes
        pages, resident, disk = pages + memory.num_pages, resident + memory.num_resident, disk + memory.disk_nbytes
    return MemoryStats(host, gpu, pages, resident, disk, _budget_nbytes(store.pager, devices))


def _budget_nbytes(pager: Pager, devices: Iterable[torch.device]) -> int | None:
    """Return the budgets of all `devices` together; None if one is unlimited, or automatic and not asked for yet."""
    total = 0
    for device in devices:
        known = pager.devices().get(device)
        budget = pager.config.frame_budget(device)[1] if known is None else known.memory.budget_nbytes
        if not budget:
            return None
        total += budget
    return total


def paging_stats(store: Store) -> PagingStats:
    """Return what the pagers of `store` did, summed over devices."""
    first, *others = [pager.stats for pager in store.pager.devices().values()] or [PagingStats()]
    return sum(others, first)
