"""What paging did: counters inside, an immutable snapshot outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from pagedopt.tiers.base import HOMES, Home


@dataclass(frozen=True, slots=True, repr=False)
class PagingStats:
    """Counts since the pager was made or its stats were reset.

    Attributes:
        faults: pins that found their page in no frame.
        hits: pins that found it in a frame, or on its way there.
        prefetches: reads started ahead of a pin.
        evictions: pages whose frame was given to another.
        bytes_read: bytes asked of each tier, by `"host"` and `"disk"`.
        bytes_written: bytes given to each tier, the same way.
        stalls: times that a pin or flush had to wait for a transfer, or for a frame that another thread had pinned.
        stalled_seconds: what they waited, together.
    """

    faults: int = 0
    hits: int = 0
    prefetches: int = 0
    evictions: int = 0
    bytes_read: Mapping[Home, int] = field(default_factory=lambda: MappingProxyType(dict.fromkeys(HOMES, 0)))
    bytes_written: Mapping[Home, int] = field(default_factory=lambda: MappingProxyType(dict.fromkeys(HOMES, 0)))
    stalls: int = 0
    stalled_seconds: float = 0.0

    def __repr__(self) -> str:
        values = [getattr(self, each.name) for each in fields(self)]
        plain = [dict(value) if isinstance(value, Mapping) else value for value in values]
        told = ", ".join(f"{each.name}={value!r}" for each, value in zip(fields(self), plain, strict=True))
        return f"PagingStats({told})"

    def __add__(self, other: PagingStats) -> PagingStats:
        """Return the sum, as of the pagers of several devices."""
        return self._plus(other, 1)

    def __sub__(self, before: PagingStats) -> PagingStats:
        """Return what was done between `before` and now, with no reset in between."""
        return self._plus(before, -1)

    def _plus(self, other: PagingStats, sign: int) -> PagingStats:
        return PagingStats(
            self.faults + sign * other.faults,
            self.hits + sign * other.hits,
            self.prefetches + sign * other.prefetches,
            self.evictions + sign * other.evictions,
            _plus(self.bytes_read, other.bytes_read, sign),
            _plus(self.bytes_written, other.bytes_written, sign),
            self.stalls + sign * other.stalls,
            self.stalled_seconds + sign * other.stalled_seconds,
        )


def _plus(left: Mapping[Home, int], right: Mapping[Home, int], sign: int) -> Mapping[Home, int]:
    return MappingProxyType({home: left[home] + sign * right[home] for home in HOMES})


@dataclass(frozen=True, slots=True)
class PagingMemory:
    """Where the pages are now.

    Attributes:
        num_pages: pages that exist; num_resident: those whose bytes are in a frame.
        frame_nbytes: bytes of all frames that exist, whether or not a page is in them.
        host_nbytes, disk_nbytes: bytes that pages hold in each tier.
        budget_nbytes: the most that `frame_nbytes` can become; None: unlimited.
    """

    num_pages: int = 0
    num_resident: int = 0
    frame_nbytes: int = 0
    host_nbytes: int = 0
    disk_nbytes: int = 0
    budget_nbytes: int | None = None


class Counters:
    """The mutable side of `PagingStats`."""

    __slots__ = (
        "bytes_read",
        "bytes_written",
        "evictions",
        "faults",
        "hits",
        "prefetches",
        "stalled_seconds",
        "stalls",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.faults = self.hits = self.prefetches = self.evictions = self.stalls = 0
        self.bytes_read: dict[Home, int] = dict.fromkeys(HOMES, 0)
        self.bytes_written: dict[Home, int] = dict.fromkeys(HOMES, 0)
        self.stalled_seconds = 0.0

    def snapshot(self) -> PagingStats:
        return PagingStats(
            self.faults,
            self.hits,
            self.prefetches,
            self.evictions,
            MappingProxyType(dict(self.bytes_read)),
            MappingProxyType(dict(self.bytes_written)),
            self.stalls,
            self.stalled_seconds,
        )
