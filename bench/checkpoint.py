"""`python -m bench.checkpoint`: how fast state is saved and loaded, beside the disk itself in the same rounds.

save      state in RAM to a new folder, every byte and name on the disk when it returns
load      a checkpoint to state in RAM, no part of it in the page cache before, every checksum compared
disk      as many bytes in order, past the page cache, one request of 4 MiB being made while another is done
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.nn import Parameter

import pagedopt
from bench.disk import Requests, raw_file
from bench.measure import EXACT, Candidate, Effort, Ready, compete, rate_ratio

_REQUEST_NBYTES = 4 << 20
_BAR = 0.8


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return 1 if saving or loading is slower than the bar."""
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=1 << 27, help="values whose state is saved; default: 1 GiB of it")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="pagedopt-bench-", dir=given.folder))
    try:
        return _measure(given.values, scratch, given.rounds)
    finally:
        shutil.rmtree(scratch)


def _measure(num_values: int, scratch: Path, rounds: int) -> int:
    state_nbytes = 8 * num_values
    requests = Requests(-(-state_nbytes // _REQUEST_NBYTES) * _REQUEST_NBYTES, _REQUEST_NBYTES, depth=2)
    effort = Effort(seconds=0.0, min_rounds=rounds, max_rounds=rounds, cap_seconds=1e9, sample_seconds=0.0)
    optimizer = _stepped(num_values)
    with ExitStack() as stack:
        raw = stack.enter_context(raw_file(scratch, requests, direct=True))

        def probe(name: str, move: Callable[[], None]) -> Candidate:
            return Candidate(name, lambda: Ready(move, EXACT, requests.nbytes))

        path = scratch / "checkpoint"

        def save() -> None:
            pagedopt.save(optimizer, path, show_progress=False)

        def remove() -> None:
            shutil.rmtree(path, ignore_errors=True)

        saving = Candidate("save", lambda: Ready(save, EXACT, state_nbytes, remove))
        loading = _Loading(num_values, path)
        is_fast = _compare(saving, probe("disk write", raw.write), effort)
        return 0 if _compare(loading.candidate(), probe("disk read", raw.read), effort) and is_fast else 1


def _compare(candidate: Candidate, disk: Candidate, effort: Effort) -> bool:
    """Time both by turns, print what they took, and return whether the candidate is fast enough."""
    timings, refusals = compete([candidate, disk], effort=effort)
    for refusal in refusals:
        raise SystemExit(f"{refusal.name}: {refusal.reason}")
    for timing in timings:
        seconds = statistics.median(timing.samples)
        print(f"{timing.name:10} {seconds:7.3f} s {timing.nbytes / seconds / 1e9:7.2f} GB/s")
    ratio = rate_ratio(*timings)
    print(f"{candidate.name} is {ratio.median:.2f} of {disk.name} ({ratio.low:.2f} to {ratio.high:.2f}, n={ratio.n})\n")
    return ratio.median >= _BAR


class _Loading:
    """Loads into an optimizer that is new every time, from a disk that has nothing of the checkpoint in RAM."""

    def __init__(self, num_values: int, path: Path) -> None:
        self._parameter = Parameter(torch.zeros(num_values))
        self._path = path
        self._optimizer = pagedopt.AdamW([self._parameter])

    def candidate(self) -> Candidate:
        return Candidate("load", lambda: Ready(self._load, EXACT, 8 * self._parameter.numel(), self._forget))

    def _load(self) -> None:
        pagedopt.load(self._optimizer, self._path, show_progress=False)

    def _forget(self) -> None:
        self._optimizer.close()
        self._optimizer = pagedopt.AdamW([self._parameter])
        for path in self._path.iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _stepped(num_values: int) -> pagedopt.AdamW:
    parameter = Parameter(torch.zeros(num_values))
    parameter.grad = torch.randn(num_values)
    optimizer = pagedopt.AdamW([parameter])
    optimizer.step()
    return optimizer


if __name__ == "__main__":
    raise SystemExit(main())
