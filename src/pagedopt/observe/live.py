"""`live`: one line in a terminal that says what paging does.

pagedopt · budget 1 GiB · resident 64 of 100 pages · 0.7 GiB a step · waited 12 ms a step (4 %) · SSD 14.3 GiB written
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from typing_extensions import Self

from pagedopt.observe.optimizers import StepListener, paged_optimizers_of
from pagedopt.optim.base import PagedOptimizer
from pagedopt.paging.stats import PagingStats
from pagedopt.units import format_bytes

if TYPE_CHECKING:
    from rich.live import Live

SECONDS_BETWEEN = 0.1
"""A faster training is shown every so often only."""


class live:  # noqa: N801 - a context manager that people call like a function
    """Show in one line of the terminal what the pages of `optimizer` do, after each step.

        with pagedopt.live(optimizer):
            train()

    The line has the budget, the pages that are resident, the bytes moved a step, the time a step waited for them and
    its share of all time, and what was written to the SSD since the line began. What else is printed to stdout
    meanwhile goes above it. Where `file` is no terminal nothing is shown while it runs, and the line is printed once
    at the end.

    Args:
        optimizer: one of pagedopt's, or what wraps one, or several of them.
        file: where to show it; None: stderr.
        final: whether to leave, or where there is no terminal print, the line at the end.

    Raises:
        TypeError: `optimizer` is none of pagedopt's.
    """

    def __init__(self, optimizer: Any, *, file: TextIO | None = None, final: bool = True) -> None:
        self._optimizers = paged_optimizers_of(optimizer)
        self._file = sys.stderr if file is None else file
        self._final = final
        self._num_steps = 0
        self._stats = PagingStats()
        self._began = self._shown = 0.0
        self._pid = os.getpid()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if self._file.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._file, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=not self._final)
            self._live.start()
            console.show_cursor()  # a training that ends by an exception may leave this unended, and a cursor hidden
        self._listener = StepListener(self._optimizers, _ignore, self._after_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        if self._live is not None:
            self._show()
            self._live.stop()
        elif self._final and self._num_steps:
            print(self.line(), file=self._file)

    def line(self, width: int | None = None) -> str:
        """Return the line as it is now; if it is wider than `width`, with shorter words, and with less in front."""
        long, short = self._parts()
        parts = long if width is None or len(_joined(long)) <= width else short
        while width is not None and len(_joined(parts)) > width and len(parts) > 1:
            parts = parts[1:]  # what paging costs comes last
        return _joined(parts)

    def _parts(self) -> tuple[list[str], list[str]]:
        """Return the parts of the line in full words, and in short ones."""
        memory = [optimizer.memory_stats() for optimizer in self._optimizers]
        resident, pages = sum(m.resident_pages for m in memory), sum(m.pages for m in memory)
        budget = memory[0].budget_bytes  # of the pager, which they share
        num_steps, written = max(self._num_steps, 1), self._stats.bytes_written
        moved = sum(self._stats.bytes_read.values()) + sum(written.values())
        waited = self._stats.stalled_seconds
        share = waited / max(time.perf_counter() - self._began, 1e-9)
        bounded = "unlimited" if budget is None else format_bytes(budget)
        a_step, waited_a_step = format_bytes(moved / num_steps), f"{waited / num_steps * 1e3:.3g} ms"
        return [
            "pagedopt",
            f"budget {bounded}",
            f"resident {resident} of {pages} pages",
            f"{a_step} a step",
            f"waited {waited_a_step} a step ({share:.0%})",
            f"SSD {format_bytes(written['disk'])} written",
        ], [
            "pagedopt",
            bounded,
            f"{resident}/{pages} pages",
            f"{a_step}/step",
            f"waited {waited_a_step} ({share:.0%})",
            f"SSD {format_bytes(written['disk'])}",
        ]

    def _after_step(self, optimizer: PagedOptimizer) -> None:
        self._num_steps += 1
        self._stats += optimizer.step_stats()
        if self._live is not None and time.perf_counter() - self._shown >= SECONDS_BETWEEN:
            self._show()

    def _show(self) -> None:
        if self._live is not None and self._pid == os.getpid():  # a forked child leaves its parent's terminal alone
            from rich.text import Text

            self._shown = time.perf_counter()
            line = self.line(self._live.console.width)
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


def _joined(parts: list[str]) -> str:
    return " · ".join(parts)


def _ignore(optimizer: PagedOptimizer) -> None:
    """A step begins."""
