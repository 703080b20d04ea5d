"""Host first, then disk: each page goes where there is room when it is reserved, and stays there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.tiers.base import Home, Tier, TierUsage, Transfer


class SplitTier:
    """A `Tier` made of two.

    A page is used once per step, so moving it from one to the other would buy nothing: its home is fixed.
    """

    def __init__(self, host: Tier, disk: Tier) -> None:
        self._tiers = (host, disk)
        self._tier_of: dict[int, Tier] = {}

    @property
    def usage(self) -> TierUsage:
        host, disk = self._tiers
        return TierUsage(host.usage.host_nbytes, disk.usage.disk_nbytes)

    def describe(self) -> str:
        return "; ".join(tier.describe() for tier in self._tiers)

    def home(self, page: int) -> Home:
        return self._tier_of[page].home(page)

    def reserve(self, page: int, nbytes: int) -> None:
        host, disk = self._tiers
        try:
            host.reserve(page, nbytes)
            self._tier_of[page] = host
        except SpillError:  # the host budget is spent: that is what the disk is for
            disk.reserve(page, nbytes)
            self._tier_of[page] = disk

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        return self._tier_of[page].read(page, into, after=after)

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        return self._tier_of[page].write(page, source, after=after)

    def release(self, page: int) -> None:
        self._tier_of.pop(page).release(page)

    def finish(self) -> None:
        for tier in self._tiers:
            tier.finish()

    def close(self) -> None:
        self._tier_of.clear()
        for tier in self._tiers:
            tier.close()
