"""What an optimizer logs, through `logging.getLogger("pagedopt")`.

INFO    the state was laid out: parameters, pages, budget, backend, and where pages go that have no frame
DEBUG   what each step moved, and how long it waited; of parameters stepped one by one, each pass
"""

from __future__ import annotations

import logging

from torch import Tensor

from pagedopt.kernels.select import kernel_for
from pagedopt.optim.store import Store
from pagedopt.paging.stats import PagingStats
from pagedopt.tiers.base import HOMES
from pagedopt.units import format_bytes

_LOG = logging.getLogger("pagedopt")


class Reports:
    """What one optimizer did and has not logged yet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = store.version
        self._stats = PagingStats()
        self._stepped: set[int] = set()

    def add(self, stats: PagingStats) -> None:
        """This was done."""
        self._stats += stats

    def begin_param(self, param: Tensor) -> None:
        """`param` is about to be stepped by itself: if it was already, a pass over the parameters has ended."""
        if id(param) in self._stepped:
            self.end_step()
        self._stepped.add(id(param))

    def end_step(self) -> None:
        """A step or pass ended: log it and, where it changed, how the state is laid out."""
        stats, self._stats = self._stats, PagingStats()
        self._stepped.clear()
        if self._version != self._store.version:
            self._version = self._store.version
            _report_layout(self._store)
        _report_step(stats)

    def close(self) -> None:
        """Log the pass that nothing ended."""
        if self._stepped:
            self.end_step()


def _report_layout(store: Store) -> None:
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


def _report_step(stats: PagingStats) -> None:
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
