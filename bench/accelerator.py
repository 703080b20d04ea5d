"""The device of `python -m bench gpu`: its clock, its memory, and the copies between it and the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.measure import EXACT, Candidate, Ready, wall_clock

UP, DOWN, BOTH = "copy up", "copy down", "copy both ways"


class CannotRunError(Exception):
    """What was asked for cannot be measured here; the message says why."""


class Accelerator(Protocol):
    """A device that is timed."""

    device: torch.device
    name: str

    def clock(self, step: Callable[[], object], repeats: int) -> float:
        """See `measure.Clock`."""
        ...

    def synchronize(self) -> None:
        """Return when everything that was started on the device has ended."""
        ...

    def free_nbytes(self) -> int:
        """Return the bytes of device memory that nobody holds."""
        ...

    def allocated_nbytes(self) -> int:
        """Return the bytes that torch holds on the device."""
        ...

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        ...

    def peak_nbytes(self) -> int:
        """Return the most bytes that torch held on the device since the reset."""
        ...

    def pinned(self, nbytes: int) -> Tensor:
        """Return host memory that the device copies from and to by itself."""
        ...

    def stream(self) -> Callable[[], AbstractContextManager[Any]]:
        """Return what puts work on a stream of its own: `with on_it(): ...`."""
        ...


class Gpu:
    """A CUDA, ROCm or XPU device."""

    def __init__(self, kind: str) -> None:
        self._module: ModuleType = getattr(torch, kind)
        self.device = torch.device(kind, self._module.current_device())
        self.name = str(self._module.get_device_name(self.device))

    def clock(self, step: Callable[[], object], repeats: int) -> float:
        begin, end = (self._module.Event(enable_timing=True) for _ in range(2))
        self.synchronize()
        begin.record()
        for _ in range(repeats):
            step()
        self.synchronize()  # copies on other streams belong to the step: the end is after all of them
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats

    def synchronize(self) -> None:
        self._module.synchronize(self.device)

    def free_nbytes(self) -> int:
        self._module.empty_cache()
        return int(self._module.mem_get_info(self.device)[0])

    def allocated_nbytes(self) -> int:
        return int(self._module.memory_allocated(self.device))

    def reset_peak(self) -> None:
        self._module.reset_peak_memory_stats(self.device)

    def peak_nbytes(self) -> int:
        return int(self._module.max_memory_allocated(self.device))

    def pinned(self, nbytes: int) -> Tensor:
        return torch.ones(nbytes, dtype=torch.uint8, pin_memory=True)

    def stream(self) -> Callable[[], AbstractContextManager[Any]]:
        stream = self._module.Stream(self.device)
        return lambda: self._module.stream(stream)


class Rehearsal:
    """The CPU in a GPU's place, so that every case can be walked through where there is none."""

    device = torch.device("cpu")
    name = "rehearsal on a CPU"

    def clock(self, step: Callable[[], object], repeats: int) -> float:
        return wall_clock(step, repeats)

    def synchronize(self) -> None:
        time.sleep(0)  # nothing is ever under way

    def free_nbytes(self) -> int:
        return 1 << 34

    def allocated_nbytes(self) -> int:
        return 0

    def reset_peak(self) -> None:
        time.sleep(0)  # nobody counts

    def peak_nbytes(self) -> int:
        return 0

    def pinned(self, nbytes: int) -> Tensor:
        return torch.ones(nbytes, dtype=torch.uint8)

    def stream(self) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: torch.cpu.stream(torch.cpu.current_stream())


def accelerator_for(kind: str, *, rehearse: bool) -> Accelerator:
    """Return the device of type `kind`.

    Raises:
        CannotRunError: it is not there, or is a CPU and this is no rehearsal.
    """
    if kind == "cpu":
        if not rehearse:
            raise CannotRunError("needs a GPU; --device cpu goes with --quick, to rehearse the cases without one")
        return Rehearsal()
    module = getattr(torch, kind, None)
    if module is None or not hasattr(module, "mem_get_info"):
        raise CannotRunError(f"--device must be cuda or xpu, or cpu with --quick, got {kind!r}")
    if not module.is_available():
        raise CannotRunError(
            f"torch {torch.__version__} finds no {kind} device here; run it on a machine with a GPU, or rehearse it "
            "with --quick --device cpu"
        )
    return Gpu(kind)


def copy_probes(accelerator: Accelerator, nbytes: int) -> list[Candidate]:
    """Return candidates that copy `nbytes` between pinned host memory and the device: up, down, and both at once."""
    return [_copy_probe(accelerator, nbytes, name, up=name != DOWN, down=name != UP) for name in (BOTH, UP, DOWN)]


def _copy_probe(accelerator: Accelerator, nbytes: int, name: str, *, up: bool, down: bool) -> Candidate:
    def prepare() -> Ready:
        moves = []
        for is_wanted, is_up in ((up, True), (down, False)):
            if is_wanted:
                moves.append(_move(accelerator, nbytes, is_up=is_up))

        def step() -> None:
            for move in moves:
                move()

        return Ready(step, EXACT, float(nbytes * (up + down)))

    return Candidate(name, prepare)


def _move(accelerator: Accelerator, nbytes: int, *, is_up: bool) -> Callable[[], None]:
    host = accelerator.pinned(nbytes)
    device = torch.zeros(nbytes, dtype=torch.uint8, device=accelerator.device)
    source, target = (host, device) if is_up else (device, host)
    on_own_stream = accelerator.stream()

    def move() -> None:
        with on_own_stream():
            target.copy_(source, non_blocking=True)

    return move
