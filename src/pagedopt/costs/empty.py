"""A pager whose pages have no bytes: frames without memory, and tiers that are numbers.

All decisions are those of `paging`: what is here moves nothing and keeps account of room, as the real tiers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from pagedopt.paging.automatic import AllocatorReader, AutomaticBudget, can_be_read
from pagedopt.paging.budget import Ledger, automatic_device_nbytes
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.frames import FramePool
from pagedopt.paging.pager import Pager, ring_pages
from pagedopt.tiers.base import EndedTransfer, Home, Tier, TierUsage, Transfer
from pagedopt.tiers.disk import extent_nbytes
from pagedopt.tiers.host import HostTier
from pagedopt.tiers.slabs import Slabs
from pagedopt.tiers.split import SplitTier
from pagedopt.tiers.staged import Ring
from pagedopt.tiers.streams import Ended, InOrder, Mark


class EmptyPager(Pager):
    """The pager of one device, which need not be here: parameters stand in for its own on the CPU, else on `meta`.

    Attributes:
        the_one: the pager of that device.
        frames, disk: its frames, and the tier that stands for the spill file.
    """

    def __init__(self, config: PagingConfig, device: torch.device) -> None:
        super().__init__(**asdict(config))
        self._planned = device
        self.the_one = self.on(torch.device("cpu" if device.type == "cpu" else "meta"))

    def _new_device_pager(self, device: torch.device) -> DevicePager:
        page_nbytes = self.config.page_nbytes(device)
        name, budget = self.config.frame_budget(device)
        nothing = torch.empty(page_nbytes, dtype=torch.uint8, device="meta")
        ledger = self._host if device.type == "cpu" else self._device_ledger(budget, page_nbytes)
        self.frames = FramePool(page_nbytes, lambda _: nothing, ledger)
        self.disk = EmptyDisk(page_nbytes)
        return DevicePager(
            page_nbytes=page_nbytes,
            prefetch_depth=self.config.prefetch_depth,
            frames=self.frames,
            open_tier=lambda: self.disk if device.type == "cpu" else self._host_and_disk(page_nbytes),
            budget_name=name,
        )

    @property
    def ram_nbytes(self) -> int:
        """Bytes charged to `max_host_memory`."""
        return self._host.charged

    def _device_ledger(self, budget: int | None, page_nbytes: int) -> Ledger:
        if budget is not None:
            return Ledger(budget or None)
        _check_is_here(self._planned)
        floor = self.config.working_set * page_nbytes
        if can_be_read(self._planned):
            return AutomaticBudget(AllocatorReader(self._planned), floor).ledger
        return Ledger(max(automatic_device_nbytes(self._planned), floor))

    def _host_and_disk(self, page_nbytes: int) -> Tier:
        """Return what `paging.pager` makes, with slabs that have no memory."""
        slabs = Slabs(page_nbytes, self._host.charge, self._host.refund, allocate=_no_memory)
        pages = ring_pages(self.config, page_nbytes, self._host.known_limit)
        self.disk.rings = [Ring(slabs, pages, page_nbytes), Ring(slabs, pages, page_nbytes)]
        return SplitTier(HostTier(slabs, _NoCopies()), self.disk)


class _NoCopies(InOrder):
    """Streams on which nothing is copied."""

    def _copy(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:  # noqa: ARG002
        return _ENDED


def _no_memory(nbytes: int) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="meta")


def _check_is_here(device: torch.device) -> None:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != device.type:
        raise ValueError(
            f"max_gpu_memory must be given: there is no {device.type} device here whose memory could be asked for"
        )


class EmptyDisk:
    """A `Tier` that moves nothing and grows as the spill file of `tiers.disk` does.

    Attributes:
        file_nbytes: of the spill file.
        rings: what pages of an accelerator would pass through.
    """

    def __init__(self, page_nbytes: int) -> None:
        self._page_nbytes = page_nbytes
        self._pages: set[int] = set()
        self.file_nbytes = 0
        self.rings: list[Ring] = []

    @property
    def usage(self) -> TierUsage:
        return TierUsage(disk_nbytes=len(self._pages) * self._page_nbytes)

    def describe(self) -> str:
        return "nothing is moved"

    def home(self, page: int) -> Home:  # noqa: ARG002 - as `Tier` has it, here and below
        return "disk"

    def reserve(self, page: int, nbytes: int) -> None:  # noqa: ARG002
        self._pages.add(page)
        if len(self._pages) * self._page_nbytes > self.file_nbytes:
            self.file_nbytes += extent_nbytes(self.file_nbytes, self._page_nbytes)

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:  # noqa: ARG002
        return _OVER

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:  # noqa: ARG002
        return _OVER

    def release(self, page: int) -> None:
        self._pages.remove(page)

    def finish(self) -> None:
        return

    def close(self) -> None:
        self._pages.clear()
        while self.rings:
            self.rings.pop().close()


_OVER = EndedTransfer()
_ENDED = Ended()
