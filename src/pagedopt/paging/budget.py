"""Bytes that may be used: the ledger that RAM is charged to, and the automatic budgets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

HOST_RESERVE_SHARE = 0.2
HOST_RESERVE_NBYTES = 1 << 30
"""An automatic host budget leaves a fifth of the free RAM, and at least 1 GiB, to data loading and everybody else."""

DEVICE_RESERVE_SHARE = 0.2
DEVICE_RESERVE_NBYTES = 1 << 30
"""An automatic device budget leaves a fifth of the free memory, and at least 1 GiB, to activations."""


@dataclass(slots=True)
class Holding:
    """What one of those that charge a ledger has of it, in bytes."""

    nbytes: int = 0


class Ledger:
    """Bytes charged before they are allocated, shared by everything that uses one kind of memory. Thread-safe.

    Args:
        limit: bytes; None: unlimited. A callable is asked once, at the first charge.
    """

    def __init__(self, limit: int | Callable[[], int] | None) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # the collector may run a finalizer that refunds, in the middle of a charge
        self.charged = 0

    @property
    def known_limit(self) -> int | None:
        """Bytes that can be charged in all; None: unlimited, or automatic and not yet asked for."""
        with self._lock:
            return None if callable(self._limit) else self._limit

    def charge(self, nbytes: int, holding: Holding | None = None) -> bool:
        """Take `nbytes` of what is left, for `holding`; return False, and take nothing, if less is left."""
        holding = holding or Holding()
        with self._lock:
            if callable(self._limit):
                self._limit = self._limit()
            limit = self._limit
            if limit is not None and self.charged + nbytes > limit:
                return False
            self.charged += nbytes
            holding.nbytes += nbytes  # no call since, so an interrupt leaves both right
            return True

    def set_limit(self, nbytes: int) -> None:
        """Allow `nbytes` in all from now on. What was charged stays charged: give it back where it is too much."""
        with self._lock:
            self._limit = nbytes

    def refund(self, nbytes: int, holding: Holding | None = None) -> None:
        """Give back `nbytes` charged before, from `holding`."""
        holding = holding or Holding()
        with self._lock:
            self.charged -= nbytes
            holding.nbytes -= nbytes
            assert self.charged >= 0, "more was given back than was charged"


def automatic_host_nbytes() -> int:
    """Return the RAM that is free for this process, as its control groups allow, less the reserve."""
    import psutil  # not at the top: it takes longer to import than pagedopt, and most optimizers never ask

    free = min([psutil.virtual_memory().available, *_cgroup_free(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])
    return max(free - max(round(free * HOST_RESERVE_SHARE), HOST_RESERVE_NBYTES), 0)


def automatic_device_nbytes(device: torch.device) -> int:
    """Return the memory that is free on an accelerator less the reserve; 0 where the device does not tell."""
    module = getattr(torch, device.type, None)
    if module is None or not hasattr(module, "mem_get_info"):
        return 0
    free = int(module.mem_get_info(device)[0])
    return max(free - max(round(free * DEVICE_RESERVE_SHARE), DEVICE_RESERVE_NBYTES), 0)


def _cgroup_free(root: Path, membership: Path) -> Iterator[int]:
    """Yield what each memory limit above this process leaves: control groups nest, and every level binds."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux, or a sandbox without /proc: nothing limits us that we could ask
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _limits(
                root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )


def _limits(root: Path, path: str, limit_file: str, usage_file: str, reclaimable: str) -> Iterator[int]:
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        limit = _number(folder / limit_file)
        usage = _number(folder / usage_file)
        if limit is not None and usage is not None:
            yield max(limit - usage + _statistic(folder / "memory.stat", reclaimable), 0)
        if folder == root:
            return


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # this level has no such limit
        return None
    return int(text) if text.isdigit() else None


def _statistic(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # without statistics nothing counts as reclaimable, which only makes the budget smaller
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
