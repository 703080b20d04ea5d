"""Memory that a step takes and gives back, in bytes a value: the slope between two sizes, so that constants fall out.

Measured in a fresh process (`python -m bench.transient NAME DTYPE FEW MANY`): the kernel's high-water mark of resident
memory is reset (/proc/self/clear_refs) after the first steps made all state, and read after one more. glibc is told to
map every larger allocation on its own, else memory freed by an earlier step would serve a later one unseen.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_GLIBC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


@dataclass(frozen=True, slots=True)
class Transient:
    """What one optimizer's step took.

    Attributes:
        nbytes: by number of values, the two sizes that were measured.
        nbytes_per_value: the slope between them.
    """

    name: str
    dtype: str
    nbytes: tuple[tuple[int, int], tuple[int, int]]

    @property
    def nbytes_per_value(self) -> float:
        (few, small), (many, large) = self.nbytes
        return (large - small) / (many - few)


def can_measure() -> str | None:
    """Return why transient memory cannot be measured here, or None."""
    if sys.platform != "linux" or not os.access(_CLEAR_REFS, os.W_OK):
        return "needs Linux, whose kernel keeps a high-water mark that can be reset"
    return None


def measure(name: str, dtype: str, sizes: tuple[int, int]) -> Transient:
    """Return what a step of the entrant `name` takes.

    Raises:
        RuntimeError: its process failed; with the last line that it wrote.
    """
    command = [sys.executable, "-m", "bench.transient", name, dtype, *map(str, sizes)]
    done = subprocess.run(command, env=os.environ | _GLIBC, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    small, large = map(int, done.stdout.split()[-2:])
    return Transient(name, dtype, ((sizes[0], small), (sizes[1], large)))


def _main(name: str, dtype: str, *sizes: str) -> None:
    for numel in sizes:
        print(_taken_by_step(name, dtype, int(numel)))


def _taken_by_step(name: str, dtype: str, numel: int) -> int:
    import torch

    from bench import peers
    from bench.workload import Shape, Workload

    entrant = next(entrant for entrant in peers.ENTRANTS if entrant.name == name)
    workload = Workload(Shape(1, (numel,)), getattr(torch, dtype), torch.device("cpu"))
    optimizer = entrant.make(workload.params)
    for step in range(2):
        workload.draw_gradients(step)
        optimizer.step()

    _CLEAR_REFS.write_text(_RESET_PEAK)
    before = _resident("VmRSS")
    optimizer.step()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    _main(*sys.argv[1:])
