"""Processes that run a function together, each with its own rank: gloo on this machine's CPU is the cluster.

A cluster lives as long as the tests that use it: starting a process costs more than most tests do.
"""

from __future__ import annotations

import io
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_STEP_SECONDS = 240
"""A collective that takes longer waits for a rank that hangs; one that fails says so at once."""


class Cluster:
    """`world` processes in one gloo group, started when they are first needed."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what `function(*args)` returns on each rank.

        `function` is a module's; what it returns are numbers, text and tensors. A rank that fails ends the cluster, the
        next run starts a new one.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        try:
            return self._results()
        except BaseException:
            self.stop()
            raise

    def _results(self) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < self.world:
            pending = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            for ready in wait(pending):
                rank = self._pipes.index(ready)  # type: ignore[arg-type]
                failed, payload = self._pipes[rank].recv()
                if failed:
                    raise AssertionError(f"rank {rank} of {self.world}:\n{payload}")
                results[rank] = torch.load(io.BytesIO(payload), weights_only=False)
        return [results[rank] for rank in range(self.world)]

    def _start(self) -> None:
        context = mp.get_context("spawn")
        store = tempfile.mktemp(prefix="pagedopt-test-cluster-")
        for rank in range(self.world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, store, there), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()  # the group's own end waits for every rank, and one may be stuck
            process.join()
        self._processes, self._pipes = [], []


def _serve(rank: int, world: int, store: str, pipe: Connection) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # gloo on CPUs is the cluster, on a machine with accelerators too
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message="the state of .* is kept as")  # a resume must not change precision
    timeout = timedelta(seconds=_STEP_SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
    while True:
        function, args = pipe.recv()
        try:
            torch.manual_seed(20_240_817)
            buffer = io.BytesIO()
            torch.save(function(*args), buffer)
            pipe.send((False, buffer.getvalue()))
        except BaseException:  # noqa: BLE001 - the test that waits for this rank is told
            pipe.send((True, traceback.format_exc()))
