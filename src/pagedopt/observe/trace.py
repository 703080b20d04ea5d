"""`trace`: what paging does, written into a file for Perfetto while it is done.

What pagers tell is only noted in the turns in which it happens. It becomes JSON and goes into the file after each step,
so that it neither lengthens the step nor needs memory that grows with the training. A step that tells more than
`MAX_NOTES` things is interrupted to write, and the trace shows that as a slice of its own: nothing is left out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from pagedopt.observe.optimizers import StepListener, device_pagers_of, paged_optimizers_of
from pagedopt.observe.timeline import STEP_BEGINS, STEP_ENDED, Timeline, Told
from pagedopt.observe.trace_file import TraceFile
from pagedopt.optim.base import PagedOptimizer
from pagedopt.paging.device import DevicePager
from pagedopt.paging.events import Observer, PageEvent

MAX_NOTES = 1 << 16
"""Notes kept before they are written, whatever step is under way: about 20 MB."""

_LOG = logging.getLogger("pagedopt")


class trace:  # noqa: N801 - a context manager that people call like a function
    """Write a trace of what the pages of `optimizer` do, for https://ui.perfetto.dev or chrome://tracing.

        with pagedopt.trace(optimizer, "trace.json", steps=10):
            train()

    The file has each step, each update of a page and each wait on the threads that step, each read and write on the
    I/O thread that did it, faults, prefetches and evictions, and counters of the bytes in frames, in RAM and on disk.
    Times are those of a monotonic clock. On an accelerator an update is the time in which the host asked for it, and a
    copy the time in which its stream made it; a transfer that nobody took the time of is an instant that says so.

    The file is whole JSON also when the body raises. If it cannot be written any more, training goes on, and the error
    is raised at the end, or logged if the body raised one of its own. Optimizers that share a pager are all seen by it;
    steps are those of `optimizer`.

    Args:
        optimizer: one of pagedopt's, or what wraps one, or several of them.
        path: the file, which is replaced.
        steps: how many steps to write: then the file is ended, and costs nothing any more. None: until the end.

    Raises:
        TypeError: `optimizer` is none of pagedopt's.
        ValueError: `steps` is less than 1.
        OSError: the file cannot be written.
    """

    def __init__(self, optimizer: Any, path: str | os.PathLike[str], *, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1 or None, got {steps}")
        self._optimizers = paged_optimizers_of(optimizer)
        self._path = Path(path)
        self._steps_left = steps
        self._lock = threading.RLock()  # a finalizer may release a page, and be told of, in the middle of writing
        self._notes: list[Told] = []
        self._observed: dict[str, tuple[DevicePager, Observer]] = {}
        self._devices: list[torch.device] = []  # those that are not the host
        self._is_writing = False
        self._is_open = False
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        if self._is_open or self._observed:
            raise RuntimeError("this trace was begun already; make another one")
        self._pid = os.getpid()
        self._timeline = Timeline(self._pid, time.perf_counter())
        self._file = TraceFile(self._path)
        self._is_open = True
        self._listener = StepListener(self._optimizers, self._before_step, self._after_step)
        try:
            self._write(list(self._timeline.begin()))
            for optimizer in self._optimizers:
                self._observe(optimizer)
        except BaseException:
            self._listener.close()
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        self._end()
        if self._error is not None and error is None:
            raise self._error

    # -- what is told --------------------------------------------------------------------------------------------------

    def _observe(self, optimizer: PagedOptimizer) -> None:
        """Observe the pagers of `optimizer` that are not observed yet: there is a new one when parameters move."""
        for place, pager in device_pagers_of(optimizer).items():
            device = str(place)
            if device in self._observed and self._observed[device][0] is pager:
                continue
            device = device if device not in self._observed else f"{device} of pager {len(self._observed) + 1}"
            if any(pager is known for known, _ in self._observed.values()):
                continue
            facts = {
                "budget_nbytes": pager.memory.budget_nbytes,
                "prefetch_depth": pager.prefetch_depth,
                "working_set": pager.working_set,
            }
            with self._lock:
                opening = list(self._timeline.add_device(device, pager.page_nbytes, _thread(), **facts))
                self._write(opening)
            observer = partial(self._note, device)
            self._observed[device] = pager, observer
            if place.type != "cpu":
                self._devices.append(place)
            pager.observe(observer)

    def _note(self, device: str, what: PageEvent | str) -> None:
        is_stepping = any(optimizer.is_stepping for optimizer in self._optimizers)
        told = Told(time.perf_counter(), _thread(), device, what, is_stepping)
        with self._lock:
            if not self._is_open or os.getpid() != self._pid:  # a forked child has the parent's file, and leaves it
                return
            self._notes.append(told)
            if len(self._notes) >= MAX_NOTES:
                self._write_in_between()

    def _before_step(self, optimizer: PagedOptimizer) -> None:
        if not self._is_open:
            return
        self._observe(optimizer)
        self._note("", STEP_BEGINS)

    def _after_step(self, optimizer: PagedOptimizer) -> None:  # noqa: ARG002 - the hook has it
        if not self._is_open:
            return
        self._note("", STEP_ENDED)
        if self._steps_left is not None:
            self._steps_left -= 1
        if self._steps_left == 0:
            self._end()
        else:
            with self._lock:
                self._write_notes(is_rest=False)

    # -- the file ------------------------------------------------------------------------------------------------------

    def _write_notes(self, *, is_rest: bool) -> None:
        """Write what was noted: all of it if it is the rest, else as far as every transfer has ended.

        Called again while it runs (by a finalizer's note), it leaves that to the next time.
        """
        if self._is_writing or not self._is_open:
            return
        self._is_writing = True
        try:
            notes, self._notes = self._notes, []
            if is_rest:
                self._finish_devices()
            else:
                notes = self._keep_unfinished(notes)
            self._write([event for told in notes for event in self._timeline.take(told)])
        finally:
            self._is_writing = False

    def _write_in_between(self) -> None:
        """Write what was noted in the middle of a step, and that this took time."""
        start, num_notes = time.perf_counter(), len(self._notes)
        self._write_notes(is_rest=True)
        self._write(list(self._timeline.written(_thread(), start, time.perf_counter(), num_notes)))

    def _keep_unfinished(self, notes: list[Told]) -> list[Told]:
        """Return the notes before the first of a transfer that a stream is still at; the others are for later."""
        for count, told in enumerate(notes):
            if isinstance(told.what, PageEvent) and told.what.moving is not None and not told.what.moving.done():
                self._notes = notes[count:] + self._notes
                return notes[:count]
        return notes

    def _finish_devices(self) -> None:
        """Return when all that streams were given has ended: then every transfer knows when it ran."""
        for device in self._devices:
            torch.get_device_module(device).synchronize(device)

    def _write(self, events: list[dict[str, Any]]) -> None:
        if self._error is not None:
            return
        try:
            self._file.write(events)
        except OSError as error:  # a trace must not end a training; its end raises this
            self._error = error
            _LOG.error("the trace %s cannot be written any more: %s", self._path, error)

    def _end(self) -> None:
        """Write what is left, close the file, observe nothing more. May be called again."""
        if not self._is_open or os.getpid() != self._pid:
            return
        for pager, observer in self._observed.values():
            pager.unobserve(observer)
        with self._lock:
            self._write_notes(is_rest=True)
            self._write(list(self._timeline.end(_thread(), time.perf_counter())))
            self._is_open = False
            try:
                self._file.close()
            except OSError as error:
                self._error = self._error or error


def _thread() -> str:
    return threading.current_thread().name
