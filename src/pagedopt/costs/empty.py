"""A pager whose pages have no bytes: frames without memory, and tiers that are numbers.

All decisions are those of `paging`: what is here moves nothing and keeps account of room, as the real tiers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.paging.budget import Ledger, automatic_device_nbytes
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.frames import FramePool
from pagedopt.paging.pager import Pager, ring_pages
from pagedopt.tiers.base import EndedTransfer, Home, Tier, TierUsage, Transfer
from pagedopt.tiers.disk import extent_nbytes
from pagedopt.tiers.slabs import Room, Slabs
from pagedopt.tiers.split import SplitTier
from pagedopt.tiers.staged import Ring


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
        buffer = torch.empty(page_nbytes, dtype=torch.uint8, device="meta")
        ledger = self._host if device.type == "cpu" else Ledger(self._device_limit(budget, page_nbytes))
        self.frames = FramePool(page_nbytes, lambda _: buffer, ledger)
        self.disk = EmptyDisk(page_nbytes)
        return DevicePager(
            page_nbytes=page_nbytes,
            prefetch_depth=self.config.prefetch_depth,
            frames=self.frames,
            open_tier=(lambda: self.disk) if device.type == "cpu" else self._host_and_disk,
            budget_name=name,
        )

    def _host_and_disk(self) -> Tier:
        """Return RAM and disk under an accelerator, with the rings that `tiers.staged` takes from RAM first."""
        page_nbytes = self.frames.page_nbytes
        slabs = Slabs(page_nbytes, self._host.charge, self._host.refund)
        num_pages = ring_pages(self.config, page_nbytes, self._host.known_limit)
        self._rings = [Ring(slabs, num_pages, page_nbytes) for _ in range(2)]
        return SplitTier(EmptyHost(slabs), self.disk)

    def _device_limit(self, budget: int | None, page_nbytes: int) -> int | None:
        if budget is None:
            _check_is_here(self._planned)
            return max(automatic_device_nbytes(self._planned), self.config.working_set * page_nbytes)
        return budget or None


def _check_is_here(device: torch.device) -> None:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != device.type:
        raise ValueError(
            f"max_gpu_memory must be given: there is no {device.type} device here whose memory could be asked for"
        )


class _Empty:
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


class EmptyHost(_Empty):
    """Charges RAM as `tiers.host` does, in slabs that are never allocated."""

    def __init__(self, slabs: Slabs) -> None:
        super().__init__()
        self._slabs = slabs
        self._rooms: dict[int, Room] = {}

    @property
    def usage(self) -> TierUsage:
        return TierUsage(host_nbytes=sum(self._reserved.values()))

    def home(self, page: int) -> Home:  # noqa: ARG002
        return "host"

    def reserve(self, page: int, nbytes: int) -> None:
        room = self._slabs.take()
        if room is None:
            raise SpillError("max_host_memory has no room for another page")
        self._reserved[page], self._rooms[page] = nbytes, room

    def release(self, page: int) -> None:
        super().release(page)
        self._slabs.give(self._rooms.pop(page))


class EmptyDisk(_Empty):
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
