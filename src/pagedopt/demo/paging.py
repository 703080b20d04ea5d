"""The paged run's budget, and what its pager did in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

import pagedopt
from pagedopt.codecs.base import StateFormat
from pagedopt.memory import state_nbytes
from pagedopt.paging.config import DEFAULT_PREFETCH_DEPTH, MIN_PAGE_NBYTES
from pagedopt.pictures.residency import Event, Recording
from pagedopt.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from pagedopt.paging.device import DevicePager

USUAL_PAGES = 64
"""Enough pages that a quarter of them is several working sets, few enough to be told apart in a picture."""

RECORDED_STEPS = 4
"""The first of them makes the pages and reads none."""

STEADY_STEP = 3
"""From this step on every step moves the same bytes: the first makes the pages, the second inherits its order."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A number of bytes, or a share of the state."""

    nbytes: int | None = None
    share: float | None = None

    def of(self, state_nbytes: int) -> int:
        """Return the budget in bytes for a state of `state_nbytes`."""
        return self.nbytes if self.nbytes is not None else int(state_nbytes * (self.share or 0.0))

    def __str__(self) -> str:
        return format_bytes(self.nbytes) if self.nbytes is not None else f"{self.share:.0%} of the state"


def parse_budget(text: str) -> Budget:
    """Return the budget that `"25%"` or `"4MiB"` means.

    Raises:
        ValueError: it is neither, not positive, or more than 100 %.
    """
    if text.strip().endswith("%"):
        return Budget(share=_parse_share(text))
    nbytes = parse_bytes(text, name="budget")
    if nbytes == 0:
        raise ValueError(f'budget must be more than 0 bytes, got "{text}"')
    return Budget(nbytes=nbytes)


def _parse_share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(
            f'budget must be bytes such as "4MiB" or a share between 0% and 100% of the state, got {text!r}'
        )
    return share


def open_pager(model: nn.Module, budget: Budget, device: torch.device) -> pagedopt.Pager:
    """Return a pager with this budget for the 8-bit AdamW state of `model` in the memory that steps run in.

    On a CPU what does not fit is on disk. On an accelerator as much again may lie in RAM, the rest is on disk.

    Raises:
        BudgetError: the budget cannot hold the working set.
    """
    nbytes = state_nbytes([tuple(parameter.shape) for parameter in model.parameters()], StateFormat.BLOCKWISE8)
    pager = pagedopt.Pager(
        page_size=page_nbytes_for(nbytes),
        max_host_memory=budget.of(nbytes),
        max_gpu_memory=None if device.type == "cpu" else budget.of(nbytes),
        prefetch_depth=DEFAULT_PREFETCH_DEPTH,
    )
    pager.on(device)  # refuses a budget that is too small now, not after minutes of training
    return pager


def page_nbytes_for(state_nbytes: int) -> int:
    """Return the largest power of two that cuts a state into at least `USUAL_PAGES` pages, if pages may be so small."""
    largest = max(state_nbytes // USUAL_PAGES, MIN_PAGE_NBYTES)
    return 1 << (largest.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class PagingUse:
    """What paging took and did.

    Attributes:
        budget_nbytes: the most that `frame_nbytes` may be.
        frame_nbytes: the most that frames took after any step.
        host_nbytes, disk_nbytes: what each tier held after the last step.
        read_nbytes, written_nbytes, stalled_seconds: of each step.
        events: what the pager told during the first `RECORDED_STEPS` steps.
    """

    page_nbytes: int
    num_pages: int
    working_set_nbytes: int
    budget_nbytes: int
    frame_nbytes: int
    host_nbytes: int
    disk_nbytes: int
    read_nbytes: list[int]
    written_nbytes: list[int]
    stalled_seconds: list[float]
    events: list[Event]

    @property
    def live_nbytes(self) -> int:
        """Bytes of all pages."""
        return self.num_pages * self.page_nbytes

    @property
    def bound_nbytes(self) -> int:
        """The bytes that a steady step may move each way: a cycle can keep no more than the budget, and the working
        set of that is on its way.
        """
        return max(0, self.live_nbytes - self.budget_nbytes + self.working_set_nbytes)

    @property
    def steady_read_nbytes(self) -> int:
        """The most that a steady step read."""
        return max(self.read_nbytes[STEADY_STEP - 1 :])

    @property
    def steady_written_nbytes(self) -> int:
        """The most that a steady step wrote."""
        return max(self.written_nbytes[STEADY_STEP - 1 :])


class PagingMeter:
    """Reads a pager's counters after each step, and records its first steps."""

    def __init__(self, pager: DevicePager) -> None:
        self._pager = pager
        self._recording = Recording()
        self._frame_nbytes = 0
        self._read_nbytes: list[int] = []
        self._written_nbytes: list[int] = []
        self._stalled_seconds: list[float] = []
        pager.observe(self._recording)

    def after_step(self, step: int) -> None:
        """Take down step number `step` (the first is 1)."""
        self._frame_nbytes = max(self._frame_nbytes, self._pager.memory.frame_nbytes)
        stats = self._pager.stats
        self._pager.reset_stats()
        self._read_nbytes.append(sum(stats.bytes_read.values()))
        self._written_nbytes.append(sum(stats.bytes_written.values()))
        self._stalled_seconds.append(stats.stalled_seconds)
        if step <= RECORDED_STEPS:
            self._recording.end_step()
        if step == RECORDED_STEPS:
            self._pager.unobserve(self._recording)

    @property
    def use(self) -> PagingUse:
        """All that was measured. While the pager is open."""
        memory = self._pager.memory
        assert memory.budget_nbytes is not None, "the demo always has a budget"
        return PagingUse(
            page_nbytes=self._pager.page_nbytes,
            num_pages=memory.num_pages,
            working_set_nbytes=self._pager.working_set * self._pager.page_nbytes,
            budget_nbytes=memory.budget_nbytes,
            frame_nbytes=self._frame_nbytes,
            host_nbytes=memory.host_nbytes,
            disk_nbytes=memory.disk_nbytes,
            read_nbytes=self._read_nbytes,
            written_nbytes=self._written_nbytes,
            stalled_seconds=self._stalled_seconds,
            events=self._recording.events,
        )
