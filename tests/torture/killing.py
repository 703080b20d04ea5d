"""Kills trainers. `python killing.py KILLS SEED FOLDER` prints a report as JSON.

A warm parent, which has torch and a table of what every step must give, forks a child for each kill. The child loads
the checkpoint, trains on with its state in a spill file, and saves every step, until it is killed. The parent loads
what is there, compares it with the table, and takes one step more.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from xxhash import xxh3_128

import pagedopt
from pagedopt.checkpoint import file_reader, file_writer
from pagedopt.paging.config import PagingConfig

SHAPES = [(200, 300), (40_000,), (7,)]
"""100,000 values: 8-bit state on four pages, of which one at a time is in RAM."""

LAST_STEP = 40
PAGE = 64 << 10

SHORTEST, LONGEST = 1e-3, 0.2
"""Seconds of a child's life: some die while they load, some many saves later."""


def main(kills: int, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    table = Table()
    checkpoint, spill = folder / "checkpoint", folder / "spill"
    spill.mkdir()
    is_saving = mmap.mmap(-1, 1)
    report: dict[str, Any] = {"kills": 0, "in_save": 0, "steps": [], "wrong": [], "ended": 0}
    longest, without_progress = LONGEST, 0
    while report["kills"] < kills:
        child = os.fork()
        if not child:
            _train(table, checkpoint, spill, is_saving)
        time.sleep(SHORTEST * (longest / SHORTEST) ** rng.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            report["ended"] += 1
            if os.WEXITSTATUS(status):
                report["wrong"].append(f"the child ended with {os.WEXITSTATUS(status)}")
                break
        else:
            report["kills"] += 1
            report["in_save"] += is_saving[0]
        is_saving[0] = 0
        step = _check(table, checkpoint, report)
        without_progress = without_progress + 1 if report["steps"][-2:] == [step, step] else 0
        if without_progress == 10:  # a machine this slow, or this busy, kills none while it saves
            longest, without_progress = 2 * longest, 0
        if any(spill.iterdir()):
            report["wrong"].append("the spill file was left behind")
        if step == LAST_STEP:
            _remove(checkpoint)
    print(json.dumps(report))


class Table:
    """The parameters, and a digest of the state, after every step of one undisturbed run."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [[torch.randn(shape, generator=generator) for shape in SHAPES]]
        self.digests = [""]
        params = self.at(0)
        optimizer = _new(params, None)
        for step in range(LAST_STEP + 1):
            _step(optimizer, params, step)
            self.params.append([param.detach().clone() for param in params])
            self.digests.append(_digest(optimizer))

    def at(self, step: int) -> list[Parameter]:
        return [Parameter(values.clone()) for values in self.params[step]]


def _new(params: list[Parameter], spill: Path | None) -> pagedopt.PagedAdamW8bit:
    if spill is None:
        return pagedopt.PagedAdamW8bit(params, lr=1e-2, page_size=PAGE, max_host_memory=0)
    budget = PagingConfig(prefetch_depth=0).working_set * PAGE
    return pagedopt.PagedAdamW8bit(
        params, lr=1e-2, page_size=PAGE, max_host_memory=budget, prefetch_depth=0, spill_dir=spill
    )


def _step(optimizer: pagedopt.PagedAdamW8bit, params: list[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


def _digest(optimizer: pagedopt.PagedAdamW8bit) -> str:
    hasher = xxh3_128()
    for entry in optimizer.state_dict()["state"].values():
        for tensor in entry.values():
            hasher.update(_bytes(tensor))
    return hasher.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.contiguous()
    return ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size())


def _train(table: Table, checkpoint: Path, spill: Path, is_saving: mmap.mmap) -> None:
    """Go on from the checkpoint until killed."""
    file_writer.CHUNK = file_reader.CHUNK = 16 << 10  # so that a file is stored in many calls, by threads
    try:
        step, params, optimizer = _resume(table, checkpoint, spill)
        while step < LAST_STEP:
            _step(optimizer, params, step)
            step += 1
            is_saving[0] = 1
            pagedopt.save(optimizer, checkpoint)
            is_saving[0] = 0
    except BaseException as error:  # noqa: BLE001 - a child tells its parent, and never returns into its tests
        print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    os._exit(0)


def _resume(table: Table, checkpoint: Path, spill: Path | None) -> tuple[int, list[Parameter], pagedopt.PagedAdamW8bit]:
    """Return the step of the checkpoint, the parameters of that step, and an optimizer with its state."""
    if not (checkpoint / "pagedopt.json").exists():
        return 0, (params := table.at(0)), _new(params, spill)
    probe = _new(params := table.at(0), spill)
    pagedopt.load(probe, checkpoint)
    step = int(probe.state[params[0]]["step"])
    for param, values in zip(params, table.params[step], strict=True):
        param.data.copy_(values)
    return step, params, probe


def _check(table: Table, checkpoint: Path, report: dict[str, Any]) -> int:
    """Load what is there, compare it, and take a step more; return the step that it is of."""
    try:
        step, params, optimizer = _resume(table, checkpoint, None)
    except pagedopt.CheckpointError as error:
        report["wrong"].append(str(error))
        return 0
    if step and _digest(optimizer) != table.digests[step]:
        report["wrong"].append(f"the state of step {step} differs")
    _step(optimizer, params, step)
    if not all(map(torch.equal, params, table.params[step + 1])):
        report["wrong"].append(f"step {step + 1} differs")
    report["steps"].append(step)
    return step


def _remove(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
