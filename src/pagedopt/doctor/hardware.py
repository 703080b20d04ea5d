"""The accelerator, the processor's threads, and the RAM."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from pagedopt.costs.measurement import device_name, processor_name
from pagedopt.doctor.check import Check
from pagedopt.paging.budget import automatic_device_nbytes, automatic_host_nbytes
from pagedopt.units import format_bytes

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
AMD_DRIVER = Path("/sys/module/amdgpu/version")

_PINNED_NBYTES = 64 << 20


def accelerator() -> torch.device | None:
    """Return the accelerator that torch can use, None if there is none."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def accelerator_found(device: torch.device | None) -> Iterator[Check]:
    """Yield the accelerator, its driver, and what an automatic budget would be."""
    driver = driver_version()
    if device is None and driver:
        yield Check(
            "accelerator",
            "broken",
            f"there is a GPU driver ({driver}), and torch cannot use it",
            "everything runs on the CPU",
            "install the build of torch for this GPU, or a driver that is new enough for it",
        )
    elif device is None:
        yield Check(
            "accelerator",
            "missing",
            "none",
            "parameters, updates and frames are in RAM, and state is paged between RAM and the disk",
        )
    else:
        budget = format_bytes(automatic_device_nbytes(device))
        value = (
            f"{device_name(device)}, {driver or 'driver unknown'}, an automatic max_gpu_memory would be {budget} now"
        )
        yield Check("accelerator", "ok", value)


def driver_version() -> str:
    """Return the version of the GPU's driver, empty if there is none that is known."""
    try:
        nvidia = re.search(r"\b\d+\.\d+(\.\d+)?\b", NVIDIA_DRIVER.read_text())
        return f"NVIDIA driver {nvidia[0]}" if nvidia else "NVIDIA driver"
    except OSError:  # no NVIDIA driver
        pass
    try:
        return f"amdgpu driver {AMD_DRIVER.read_text().strip()}"
    except OSError:  # nor AMD's
        return ""


def pinned_memory(device: torch.device | None) -> Iterator[Check]:
    """Yield whether RAM can be pinned, which copies to and from an accelerator need to be fast."""
    limit = _memlock_limit()
    if device is None:
        yield Check("pinned memory", "ok", f"not needed without an accelerator; {limit}")
        return
    try:
        torch.empty(_PINNED_NBYTES, dtype=torch.uint8, device="cpu", pin_memory=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        cost = "pages are copied to the accelerator at a fraction of its speed"
        yield Check("pinned memory", "broken", f"{reason}; {limit}", cost, "raise ulimit -l, or the container's memory")
        return
    yield Check("pinned memory", "ok", f"{format_bytes(_PINNED_NBYTES)} were pinned; {limit}")


def _memlock_limit() -> str:
    if sys.platform == "win32":
        return "this system has no limit of its own"
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return f"ulimit -l is {'unlimited' if limit == resource.RLIM_INFINITY else format_bytes(limit)}"


def threads() -> Iterator[Check]:
    """Yield the threads that update parameters on a CPU, and the cores that this process may use."""
    cores, used = _cores(), torch.get_num_threads()
    value = f"{used} for {cores} logical cores of {processor_name()}"
    if used > cores:
        cost = "threads that share a core wait for each other, and steps take longer"
        yield Check("threads", "missing", value, cost, f"OMP_NUM_THREADS={cores}, or torch.set_num_threads({cores})")
    else:
        yield Check("threads", "ok", value)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ram() -> Iterator[Check]:
    """Yield the RAM that this process may use, as its control groups allow."""
    import psutil

    total, budget = psutil.virtual_memory().total, automatic_host_nbytes()
    value = f"{format_bytes(total)}, an automatic max_host_memory would be {format_bytes(budget)} now"
    if budget:
        yield Check("RAM", "ok", value)
    else:
        cost = "an automatic max_host_memory is only a few pages, so almost all state moves in every step"
        yield Check("RAM", "missing", value, cost, "end what takes the RAM, or raise the container's limit")
