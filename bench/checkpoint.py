"""How fast state is saved and loaded, beside the disk itself in the same rounds.

save      to a new folder; every byte and name is on the disk when it returns
load      into a new optimizer; every checksum is compared
disk      as many bytes in order, past the page cache, one request of 4 MiB being made while another is done

State is in RAM, or it is in a spill file on the same disk: then a save and a load read and write as much as they save
and load, and what they are compared with does so too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

import pagedopt
from bench.bars import LOAD, SAVE
from bench.cases import Options
from bench.disk import Requests, raw_file
from bench.measure import EXACT, Candidate, Ready, Verdict, compete
from bench.results_file import Contest
from pagedopt.codecs.base import BLOCK

_REQUEST_NBYTES = 4 << 20
_BUDGET = "256MiB"
_QUICK_BUDGET = "1MiB"


@dataclass(frozen=True, slots=True)
class Kind:
    """What state is saved and loaded.

    Attributes:
        case: its short name; numel: values of the one parameter; bits: of each moment.
        is_spilled: whether all but a few pages are in a spill file.
    """

    case: str
    numel: int
    bits: int
    is_spilled: bool


KINDS = (
    Kind("32-bit", 1 << 27, 32, is_spilled=False),
    Kind("8-bit", 1 << 28, 8, is_spilled=False),
    Kind("32-bit-spilled", 1 << 27, 32, is_spilled=True),
    Kind("8-bit-spilled", 1 << 28, 8, is_spilled=True),
)
CASES = tuple(f"{verb}-{kind.case}" for kind in KINDS for verb in ("save", "load"))


def run_contests(options: Options) -> Iterator[Contest]:
    """Run every wanted case."""
    for kind in KINDS:
        if options.wants(f"save-{kind.case}") or options.wants(f"load-{kind.case}"):
            scratch = Path(tempfile.mkdtemp(prefix="pagedopt-bench-", dir=options.spill_dir))
            try:
                yield from _contests(kind, scratch, options)
            finally:
                shutil.rmtree(scratch)


def _contests(kind: Kind, scratch: Path, options: Options) -> Iterator[Contest]:
    optimizers = _Optimizers(kind, scratch, options)
    options.say(f"making {kind.case} state")
    saved = optimizers.stepped()
    state_nbytes = optimizers.state_nbytes
    requests = Requests(-(-state_nbytes // _REQUEST_NBYTES) * _REQUEST_NBYTES, _REQUEST_NBYTES, depth=2)
    moved = 2 if kind.is_spilled else 1

    def contest(verb: str, candidate: Candidate, move: Callable[[], None], ceiling: str) -> Contest:
        probe = Candidate(ceiling, lambda: Ready(move, EXACT, moved * requests.nbytes), "past the page cache")
        timings, refusals = compete([candidate, probe], effort=options.effort, say=options.say)
        where = "in a spill file" if kind.is_spilled else "in RAM"
        title = f"{verb} of {state_nbytes / 1e9:.3g} GB of {kind.bits}-bit state {where}"
        return Contest(f"{verb}-{kind.case}", title, 0, ceiling, ceiling, tuple(timings), tuple(refusals), {})

    with ExitStack() as stack:
        raw = stack.enter_context(raw_file(scratch, requests, direct=True))
        both = (raw.both, "disk read and write") if kind.is_spilled else None
        path = scratch / "checkpoint"
        if options.wants(f"save-{kind.case}"):
            saving = _saving(saved, optimizers, path, moved * state_nbytes)
            yield contest("save", saving, *(both or (raw.write, "disk write")))
        if options.wants(f"load-{kind.case}"):
            pagedopt.save(saved, path, show_progress=False)
            loading = _loading(saved, optimizers, path, moved * state_nbytes)
            yield contest("load", loading, *(both or (raw.read, "disk read")))


class _Optimizers:
    """Makes optimizers over one parameter, each with a pager of its own."""

    def __init__(self, kind: Kind, scratch: Path, options: Options) -> None:
        numel = kind.numel >> 8 if options.quick else kind.numel
        self.state_nbytes = 2 * (numel * kind.bits // 8 + (4 * numel // BLOCK if kind.bits == 8 else 0))
        self._parameter = Parameter(torch.zeros(numel))
        self._bits = kind.bits
        self._paging: dict[str, Any] = {"spill_dir": scratch, "max_host_memory": 0}
        if options.quick:
            self._paging["page_size"] = "64KiB"
        if kind.is_spilled:
            self._paging["max_host_memory"] = _QUICK_BUDGET if options.quick else _BUDGET

    def new(self) -> pagedopt.PagedAdamW:
        pager = pagedopt.Pager(**self._paging)
        return pagedopt.PagedAdamW([self._parameter], optim_bits=self._bits, pager=pager)

    def stepped(self) -> pagedopt.PagedAdamW:
        """Return one whose state is of a step with random gradients: a disk may compress, and keep zeros nowhere."""
        optimizer = self.new()
        self._parameter.grad = torch.randn(self._parameter.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        self._parameter.grad = None
        return optimizer


def _saving(saved: pagedopt.PagedAdamW, optimizers: _Optimizers, path: Path, nbytes: int) -> Candidate:
    def save() -> None:
        pagedopt.save(saved, path, show_progress=False)

    def remove() -> None:
        shutil.rmtree(path, ignore_errors=True)

    def prepare() -> Ready:
        save()
        loaded = optimizers.new()
        pagedopt.load(loaded, path, show_progress=False)
        return Ready(save, _verdict(saved, loaded), nbytes, remove)

    return Candidate(SAVE, prepare)


def _loading(saved: pagedopt.PagedAdamW, optimizers: _Optimizers, path: Path, nbytes: int) -> Candidate:
    loaded = optimizers.new()

    def load() -> None:
        pagedopt.load(loaded, path, show_progress=False)

    def forget() -> None:
        """A load starts with a new optimizer, and with nothing of the checkpoint in RAM."""
        nonlocal loaded
        loaded.close()
        loaded = optimizers.new()
        if hasattr(os, "posix_fadvise"):
            for file in path.iterdir():
                fd = os.open(file, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def prepare() -> Ready:
        load()
        return Ready(load, _verdict(saved, loaded), nbytes, forget)

    return Candidate(LOAD, prepare)


def _verdict(saved: pagedopt.PagedAdamW, loaded: pagedopt.PagedAdamW) -> Verdict:
    """Say whether all state came back, to the bit."""
    ((one,), (other,)) = (list(optimizer.state.values()) for optimizer in (saved, loaded))
    is_same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return EXACT if is_same else Verdict(1.0, 0.0, "exact")
