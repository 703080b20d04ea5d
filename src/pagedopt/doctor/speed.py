"""How fast pages can be moved here, measured briefly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pagedopt.costs.measurement import Setup, measure_copies, measure_disk, measure_host
from pagedopt.doctor.check import Check
from pagedopt.errors import SpillError
from pagedopt.paging.config import AUTOMATIC_PAGE_NBYTES, DEFAULT_PREFETCH_DEPTH

SLOW_DISK = 0.5e9
"""Bytes a second, both ways together: what a disk that is no SSD, or a shared one, does not reach."""


def rates(device: torch.device, folder: Path, say: Callable[[str], object]) -> Iterator[Check]:
    """Yield what the disk, the RAM and the accelerator's link can do with pages of the usual size."""
    setup = Setup(device, folder, AUTOMATIC_PAGE_NBYTES, DEFAULT_PREFETCH_DEPTH)
    say(f"measuring the disk under {folder}")
    try:
        yield _disk(measure_disk(setup))
    except SpillError as error:
        yield Check(
            "disk rate", "broken", str(error), "state cannot be paged to this folder", "set spill_dir elsewhere"
        )
    say("measuring RAM")
    yield Check("RAM rate", "ok", f"{_gb(measure_host())} copied")
    if device.type != "cpu":
        say("measuring copies to and from the accelerator")
        copies = measure_copies(setup)
        yield Check("device rate", "ok", f"{_gb(copies['up'])} to it, {_gb(copies['down'])} from it")


def _disk(measured: dict[str, float]) -> Check:
    spoken = ", ".join(
        f"{_gb(measured[f'disk_{name}'])} {what}"
        for name, what in (("read", "read"), ("write", "written"), ("both", "both ways at once"))
    )
    if measured["disk_both"] >= SLOW_DISK:
        return Check("disk rate", "ok", spoken)
    cost = "a GiB of state paged to it and back takes more than four seconds of a step"
    return Check("disk rate", "missing", spoken, cost, "set spill_dir to an SSD, or raise the budgets")


def _gb(rate: float) -> str:
    return f"{rate / 1e9:.3g} GB/s"
