"""What an optimizer logs, through `logging.getLogger("pagedopt")`.

INFO    the state was laid out: parameters, pages, budget, backend, and where pages go that have no frame
DEBUG   what each step moved, and how long it waited
"""

from __future__ import annotations

import logging

from pagedopt.kernels.select import kernel_for
from pagedopt.optim.store import Store
from pagedopt.paging.stats import PagingStats
from pagedopt.tiers.base import HOMES
from pagedopt.units import format_bytes

_LOG = logging.getLogger("pagedopt")


def report_layout(store: Store) -> None:
    """Log where the state in `store` lies: a line for each device."""
    if not _LOG.isEnabledFor(logging.INFO):
        return
    for device, pages in store.pages().items():
        pager = store.pager.on(device)
        budget = pager.memory.budget_nbytes
        _LOG.info(
            "state of %d parameters on %s: %d pages of %s, budget %s, %s backend; %s",
            sum(record.device == device for record in store.records.values()),
            device,
            len(pages),
            format_bytes(pager.page_nbytes),
            "unlimited" if budget is None else format_bytes(budget),
            kernel_for(device).name,
            pager.describe(),
        )


def report_step(stats: PagingStats) -> None:
    """Log what a step did."""
    if not _LOG.isEnabledFor(logging.DEBUG):
        return
    _LOG.debug(
        "step: %d pages used, %d faults, %d prefetches, read %s from RAM and %s from disk, "
        "wrote %s to RAM and %s to disk, waited %d times, %.3g s",
        stats.hits + stats.faults,
        stats.faults,
        stats.prefetches,
        *(format_bytes(moved[home]) for moved in (stats.bytes_read, stats.bytes_written) for home in HOMES),
        stats.stalls,
        stats.stalled_seconds,
    )
