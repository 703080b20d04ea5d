"""The numbers that an optimizer tells about its pages."""

from __future__ import annotations

from typing import NamedTuple

from pagedopt.optim.store import Store
from pagedopt.paging.stats import PagingStats


class MemoryStats(NamedTuple):
    """Where the state of one optimizer is. The first two are qlora-rs' `memory_stats()`.

    Attributes:
        host_bytes: bytes of state off the accelerator, in RAM and on disk.
        gpu_bytes: bytes of frames on accelerators.
        pages: pages that hold its state.
        resident_pages: those of them that are in frames now.
        disk_bytes: bytes of spill file that its pagers hold.
        budget_bytes: the most that the frames of its pagers may take; None: unlimited.
    """

    host_bytes: int
    gpu_bytes: int
    pages: int
    resident_pages: int
    disk_bytes: int
    budget_bytes: int | None


def memory_stats(store: Store) -> MemoryStats:
    """Return where the state in `store` is. Pagers that it shares are counted whole."""
    host = gpu = pages = resident = disk = 0
    budgets: list[int | None] = []
    for device, pager in store.pager.devices().items():
        memory = pager.memory
        on_accelerator = device.type != "cpu"
        gpu += memory.frame_nbytes if on_accelerator else 0
        # In RAM a frame is a copy of its page on disk, or the page itself where there is no disk tier: count it once.
        host += memory.host_nbytes + memory.disk_nbytes if on_accelerator else memory.num_pages * pager.page_nbytes
        pages, resident, disk = pages + memory.num_pages, resident + memory.num_resident, disk + memory.disk_nbytes
        budgets.append(memory.budget_nbytes)
    known = [budget for budget in budgets if budget is not None]
    return MemoryStats(host, gpu, pages, resident, disk, sum(known) if known and len(known) == len(budgets) else None)


def paging_stats(store: Store) -> PagingStats:
    """Return what the pagers of `store` did, summed over devices."""
    total = PagingStats()
    for pager in store.pager.devices().values():
        total += pager.stats
    return total
