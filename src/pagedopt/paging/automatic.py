"""The automatic budget of an accelerator: how many bytes of frames may stay there from one step to the next.

Everything else on the device (parameters, gradients, activations) is `others`. What they need at their worst is learnt
from the allocator's peak, which counts frames and others together and grows only when a new record is set:

    a record in this interval       others were at peak - frames, exactly
    none                            others were at most at record - frames: so much with those frames did not run out

so frames may have

    keep = min(usable - largest exact,  max(usable, survived) - largest hidden)

where usable is what this process can have of the device, less a reserve, and survived is the largest record ever. The
peak is never reset: it is its user's. One who resets it loses nothing here, as the largest of both are remembered. So a
spike that was seen once fits beside the frames from then on, and frames grow only into memory that nobody was seen to
need.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pagedopt.paging.budget import Ledger

RESERVE_SHARE = 1 / 16
RESERVE_NBYTES = 512 << 20
"""Left free: a sixteenth of the device, at least 512 MiB, for what the allocator cannot use in pieces."""

_READINGS_PER_CAPACITY = 64
"""Asking the driver for free memory is slow, and the answer changes only with what other processes do."""

PARTS_SECONDS = 0.02
"""How long a reading stands for steps of single parameters. One takes some 50 µs, and `step_in_backward` begins a step
for every parameter; the peak forgets nothing.
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the allocator tells, in bytes.

    Attributes:
        capacity: what this process can have in all: what it reserved and what is free.
        peak: the most that was allocated at any time, frames included, since the peak was last reset.
    """

    capacity: int
    peak: int


class Policy:
    """How many bytes of frames to keep, decided anew at each reading. It knows nothing but numbers."""

    def __init__(self) -> None:
        self._record = 0
        self._survived = 0
        self._exact = 0
        self._hidden: int | None = None

    def keep(self, reading: Reading, frames_nbytes: int) -> int:
        """Return the bytes of frames to keep, after an interval that had at least `frames_nbytes` of them."""
        others = max(reading.peak - frames_nbytes, 0)
        if reading.peak == self._record:
            self._hidden = others if self._hidden is None else max(self._hidden, others)
        else:  # a new record, or the first since its user reset the peak
            self._exact = max(self._exact, others)
        self._record = reading.peak
        self._survived = max(self._survived, reading.peak)

        usable = reading.capacity - max(round(reading.capacity * RESERVE_SHARE), RESERVE_NBYTES)
        room = usable - self._exact
        if self._hidden is not None:
            room = min(room, max(usable, min(self._survived, reading.capacity)) - self._hidden)
        return max(room, 0)


class AutomaticBudget:
    """A `Policy` that reads the allocator and sets the limit of a ledger, at its first charge and at every step.

    Args:
        read: returns what the allocator tells.
        working_set_nbytes: what frames may have in any case while a step runs.
    """

    def __init__(self, read: Callable[[], Reading], working_set_nbytes: int) -> None:
        self._read = read
        self._working_set_nbytes = working_set_nbytes
        self._policy = Policy()
        self._frames_nbytes = 0
        self._least_nbytes = sys.maxsize
        self._read_at = 0.0
        self.keep_nbytes = 0
        """Bytes of frames to keep until the next step."""
        self.ledger = Ledger(lambda: self._decide(0))

    def begin_step(self, frames_nbytes: int, *, is_part: bool = False) -> None:
        """Look at what happened since the last look, and set what frames, now `frames_nbytes`, may have in this step.

        A step of a single parameter (`is_part`) only looks if nobody did for a while.
        """
        self._least_nbytes = min(self._least_nbytes, self._frames_nbytes, frames_nbytes)
        if is_part and time.monotonic() - self._read_at < PARTS_SECONDS:
            return
        self.ledger.set_limit(self._decide(self._least_nbytes))
        self._least_nbytes = sys.maxsize
        self._read_at = time.monotonic()

    def end_step(self, frames_nbytes: int) -> None:
        """So many bytes of frames stay until the next step."""
        self._frames_nbytes = frames_nbytes

    def _decide(self, frames_nbytes: int) -> int:
        self.keep_nbytes = self._policy.keep(self._read(), frames_nbytes)
        return max(self.keep_nbytes, self._working_set_nbytes)


class AllocatorReader:
    """Reads the allocator of a CUDA, ROCm or XPU device, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = torch.get_device_module(device)
        self._reserved = -1
        self._free = 0
        self._num_readings = 0

    def __call__(self) -> Reading:
        stats = self._module.memory_stats_as_nested_dict(self._device)
        if not stats:  # nothing was allocated yet
            return Reading(int(self._module.mem_get_info(self._device)[0]), 0)
        reserved = int(stats["reserved_bytes"]["all"]["current"])
        if reserved != self._reserved or self._num_readings % _READINGS_PER_CAPACITY == 0:
            self._free = int(self._module.mem_get_info(self._device)[0])
            self._reserved = reserved
        self._num_readings += 1
        return Reading(reserved + self._free, int(stats["allocated_bytes"]["all"]["peak"]))


def can_be_read(device: torch.device) -> bool:
    """Return whether the allocator of `device` tells what the policy needs to know."""
    module = getattr(torch, device.type, None)
    return hasattr(module, "memory_stats_as_nested_dict") and hasattr(module, "mem_get_info")
