"""What paging did, as flat numbers for a log."""

from __future__ import annotations

from pagedopt.optim.base import PagedOptimizer

MOVED = ("paging/read_bytes", "paging/written_bytes", "paging/stalled_seconds")
"""The numbers that grow with every step."""


def paging_report(optimizer: PagedOptimizer) -> dict[str, float]:
    """Return where the state is now, and what was moved since the statistics were last reset.

    `paging/budget_bytes` is left out where there is no budget. Bytes and seconds are sums over all tiers and devices.
    """
    memory, stats = optimizer.memory_stats(), optimizer.paging_stats()
    report: dict[str, float] = {
        "paging/resident_share": memory.resident_pages / memory.pages if memory.pages else 1.0,
        "paging/disk_bytes": memory.disk_bytes,
        "paging/read_bytes": sum(stats.bytes_read.values()),
        "paging/written_bytes": sum(stats.bytes_written.values()),
        "paging/stalled_seconds": stats.stalled_seconds,
    }
    if memory.budget_bytes is not None:
        report["paging/budget_bytes"] = memory.budget_bytes
    return report
