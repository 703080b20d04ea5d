"""`python -m bench.cpu_instructions`: the instructions that an update of 16 values executes, counted (Linux, x86-64).

A child makes two updates of a size and stops before and after the second; its parent takes it from one stop to the next
in single steps. What a call costs whatever its size, Python included, is gone from the difference between two sizes.
Loads, stores, loops and prefetches count. `python tests/kernels/arm_machine.py` counts those of the NEON kernels.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from rich.console import Console

from bench.kernel import DTYPES, FORMATS, operands_of, page_of
from pagedopt.kernels.native import TARGETS, NativeKernel

SMALL, LARGE = 1 << 11, 1 << 12
"""Values: whole blocks, in the cache, on one thread."""

_TRACE_ME, _CONTINUE, _SINGLE_STEP = 0, 7, 9
"""Requests of ptrace."""


@dataclass(frozen=True, slots=True)
class Case:
    """One update: the names of a target, a format and a dtype, and how many values."""

    target: str
    state_format: str
    dtype: str
    numel: int


def for_16_values(target: str, state_format: str, dtype: str) -> float:
    """Return how many instructions an update executes for each 16 values."""
    small, large = executed([Case(target, state_format, dtype, numel) for numel in (SMALL, LARGE)])
    return (large - small) / (LARGE - SMALL) * 16


def executed(cases: Sequence[Case]) -> list[int]:
    """Return how many instructions each case executes, with the call of it.

    Raises:
        RuntimeError: this is no Linux on x86-64.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError(
            f"instructions are counted on Linux on x86_64, not {platform.system()} on {platform.machine()}"
        )
    words = [":".join(map(str, astuple(case))) for case in cases]
    command = [sys.executable, "-m", "bench.cpu_instructions", *words]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as child:  # noqa: S603
        try:
            counts = [_steps_to_next_stop(child.pid) for _ in cases]
        finally:
            child.kill()
    return counts


def _steps_to_next_stop(pid: int) -> int:
    """Wait for a child to stop itself, take it to where it does so again, and let it go."""
    libc = ctypes.CDLL(None)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    _signal_that_stopped(pid)
    libc.ptrace(_SINGLE_STEP, pid, 0, 0)
    count = 1
    while _signal_that_stopped(pid) != signal.SIGSTOP:
        libc.ptrace(_SINGLE_STEP, pid, 0, 0)
        count += 1
    libc.ptrace(_CONTINUE, pid, 0, 0)
    return count


def _signal_that_stopped(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"the process that is counted ended with {os.waitstatus_to_exitcode(status)}")
    return os.WSTOPSIG(status)


def _be_counted(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if ctypes.CDLL(None).ptrace(_TRACE_ME, 0, 0, 0) != 0:
        raise RuntimeError("this system lets no process be counted; in a container, allow ptrace")
    for word in words:
        target, state_format, dtype, numel = word.split(":")
        kernel = NativeKernel(target)
        segments, frame = page_of(FORMATS[state_format], int(numel))
        operands = operands_of(getattr(torch, dtype), int(numel))
        kernel.update(segments, frame, operands)
        signal.raise_signal(signal.SIGSTOP)
        kernel.update(segments, frame, operands)
        signal.raise_signal(signal.SIGSTOP)


def main() -> None:
    """Print the instructions of every target with vectors that this processor has."""
    console = Console()
    console.print("instructions for 16 values")
    for target in (name for name, is_supported in TARGETS.items() if is_supported and name != "scalar"):
        for state_format in FORMATS:
            for dtype in (str(dtype).removeprefix("torch.") for dtype in DTYPES):
                title = f"{target} {state_format} {dtype}"
                console.print(f"{title:30s}{for_16_values(target, state_format, dtype):6.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _be_counted(sys.argv[1:])
    else:
        main()
