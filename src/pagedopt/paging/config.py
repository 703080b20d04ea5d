"""What a user says about paging: page size, budgets, folder and look-ahead. Read once, then immutable and hashable.

0 = unlimited        None = automatic        any other number of bytes = a hard budget
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from pagedopt.errors import BudgetError
from pagedopt.tiers.buffers import HUGE_NBYTES
from pagedopt.units import format_bytes, parse_bytes

MIN_PAGE_NBYTES = 64 << 10
"""Smaller pages would cost many times more bookkeeping (see below) than transfer."""

PAGE_ALIGNMENT = 4096
"""A page is whole blocks of every disk and whole pages of every CPU, so that it can be read past the page cache."""

AUTOMATIC_PAGE_NBYTES = 16 << 20
"""A page costs some 50 µs of Python on a CPU, in which its cores wait, and 100 µs of calls on an accelerator, where a
PCIe 5 link moves this in 300 µs. In RAM a frame takes memory only as it is written. On an accelerator, from 10 MiB on
torch's allocator takes a segment for each frame, so that frames given back can become anything.
"""

RESIDENT_PAGE_NBYTES = 64 << 20
"""Where everything stays on an accelerator, a page is nothing but a launch. By an H100's bandwidth 16 MiB of 8-bit
state are over in 30 µs: little for what the last tiles and the next launch waste, and for the host.
"""

AUTOMATIC_PAGES_PER_BUDGET = 16
"""An automatic page is at most this share of a budget: five pages of working set leave most of it for residency."""

DEFAULT_PREFETCH_DEPTH = 2

MAX_PREFETCH_DEPTH = 1024

_UNSET = ("", "none", "auto")
"""What trainers that pass plain `key=value` text write for None."""


@dataclass(frozen=True, slots=True)
class PagingConfig:
    """One pager's options. Optimizers with equal configs share a pager.

    Attributes:
        page_size: bytes of a page; None: chosen for each device by `page_nbytes`.
        max_gpu_memory: bytes of frames on an accelerator; 0: unlimited; None: automatic.
        max_host_memory: bytes of RAM (frames of CPU parameters, host tier of accelerators); 0, None as above.
        spill_dir: folder of the spill file; None: the system's temporary folder.
        prefetch_depth: pages read ahead of the one in use, and as many written behind it.
    """

    page_size: int | None = None
    max_gpu_memory: int | None = None
    max_host_memory: int | None = None
    spill_dir: Path | None = None
    prefetch_depth: int = DEFAULT_PREFETCH_DEPTH

    @classmethod
    def parse(
        cls,
        *,
        page_size: int | str | None = None,
        max_gpu_memory: int | str | None = None,
        max_host_memory: int | str | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        prefetch_depth: int | str | None = DEFAULT_PREFETCH_DEPTH,
    ) -> PagingConfig:
        """Return the config that numbers or text such as `"4MiB"` describe; `"None"` and `""` are None.

        An explicit `page_size` is rounded up to a multiple of 4096 bytes and to at least 64 KiB.

        Raises:
            TypeError: an argument is of a type that cannot be read.
            ValueError: a value is out of range; the message names the argument and the value.
        """
        return cls(
            page_size=_parse_page_size(page_size),
            max_gpu_memory=_parse_budget(max_gpu_memory, "max_gpu_memory"),
            max_host_memory=_parse_budget(max_host_memory, "max_host_memory"),
            spill_dir=_parse_folder(spill_dir),
            prefetch_depth=_parse_depth(prefetch_depth),
        )

    @classmethod
    def resident(cls) -> PagingConfig:
        """Return the config under which everything stays in frames: no budget, no tier, no copy."""
        return cls(max_gpu_memory=0, max_host_memory=0)

    @property
    def working_set(self) -> int:
        """Frames that a sweep needs at once."""
        return working_set_of(self.prefetch_depth)

    def frame_budget(self, device: torch.device) -> tuple[str, int | None]:
        """Return the name and value of the budget that the frames of `device` come from."""
        if device.type == "cpu":
            return "max_host_memory", self.max_host_memory
        return "max_gpu_memory", self.max_gpu_memory

    def page_nbytes(self, device: torch.device) -> int:
        """Return the bytes of a page of `device`.

        Unless told otherwise 16 MiB, and at most 1/16 of an explicit budget; 64 MiB where all stays on an accelerator.
        In RAM also 2 MiB where two working sets of that fit: such frames are huge pages, which disks move faster.
        """
        if self.page_size is not None:
            return self.page_size
        _, budget = self.frame_budget(device)
        if budget == 0 and device.type != "cpu":
            return RESIDENT_PAGE_NBYTES
        if not budget:
            return AUTOMATIC_PAGE_NBYTES
        share = max(budget // AUTOMATIC_PAGES_PER_BUDGET, MIN_PAGE_NBYTES)
        nbytes = min(1 << (share.bit_length() - 1), AUTOMATIC_PAGE_NBYTES)
        if device.type == "cpu" and budget >= 2 * self.working_set * HUGE_NBYTES:
            return max(nbytes, HUGE_NBYTES)
        return nbytes

    def check_budget(self, device: torch.device) -> None:
        """Refuse an explicit budget that cannot hold the working set of `device`.

        Raises:
            BudgetError: it cannot; the message says the smallest that can.
        """
        name, budget = self.frame_budget(device)
        page_nbytes = self.page_nbytes(device)
        if budget and budget < self.working_set * page_nbytes:
            raise too_small(name, budget, page_nbytes, self.prefetch_depth)


def working_set_of(prefetch_depth: int) -> int:
    """Return the frames that a sweep needs at once: the page in use, those read ahead and those written behind it."""
    return 1 + 2 * prefetch_depth


def too_small(name: str, budget: int, page_nbytes: int, prefetch_depth: int) -> BudgetError:
    """Return the error that says what `budget` lacks and what to do."""
    working_set = working_set_of(prefetch_depth)
    need = working_set * page_nbytes
    return BudgetError(
        f"{name} of {budget} bytes ({format_bytes(budget)}) is less than the working set of {working_set} pages of "
        f"{format_bytes(page_nbytes)}; set {name} to at least {need} bytes ({format_bytes(need)}), "
        f"or lower page_size or prefetch_depth={prefetch_depth}"
    )


def _is_unset(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _UNSET)


def _parse_page_size(value: int | str | None) -> int | None:
    if value is None or _is_unset(value):
        return None
    nbytes = parse_bytes(value, name="page_size")
    if nbytes == 0:
        raise ValueError(f"page_size must be positive, got {value!r}")
    return max(-(-nbytes // PAGE_ALIGNMENT) * PAGE_ALIGNMENT, MIN_PAGE_NBYTES)


def _parse_budget(value: int | str | None, name: str) -> int | None:
    return None if value is None or _is_unset(value) else parse_bytes(value, name=name)


def _parse_folder(value: str | os.PathLike[str] | None) -> Path | None:
    if value is None or _is_unset(value):
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"spill_dir must be a path, not {value!r}")
    folder = Path(value).expanduser().absolute()  # a later chdir must not move the spill file
    if not folder.is_dir():
        raise ValueError(f"spill_dir must be an existing folder, got {str(value)!r}")
    return folder


def _parse_depth(value: int | str | None) -> int:
    if value is None or _is_unset(value):
        return DEFAULT_PREFETCH_DEPTH
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"prefetch_depth must be an int, not {value!r}")
    try:
        depth = int(value)
    except ValueError:
        raise ValueError(f"prefetch_depth must be a number of pages, got {value!r}") from None
    if not 0 <= depth <= MAX_PREFETCH_DEPTH:
        raise ValueError(f"prefetch_depth must be between 0 and {MAX_PREFETCH_DEPTH}, got {value!r}")
    return depth
