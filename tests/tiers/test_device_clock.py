"""A device's events on the host's clock, with events that say what they were told."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from pagedopt.tiers.base import Span
from pagedopt.tiers.streams import DeviceClock, InOrder, TimedMark


@dataclass
class MadeUpEvent:
    """An event of a device whose clock counts milliseconds from no known time."""

    enable_timing: bool = False
    milliseconds: float = 5000.0

    def record(self, stream: object) -> None:
        return

    def synchronize(self) -> None:
        return

    def elapsed_time(self, later: MadeUpEvent) -> float:
        assert self.enable_timing
        assert later.enable_timing
        return later.milliseconds - self.milliseconds


MODULE: Any = SimpleNamespace(Event=MadeUpEvent)


def test_a_copy_is_told_in_seconds_of_the_hosts_clock() -> None:
    before = time.perf_counter()
    clock = DeviceClock(MODULE, stream=None)
    after = time.perf_counter()
    start, end = MadeUpEvent(True, 5250.0), MadeUpEvent(True, 5300.0)

    span = TimedMark(MODULE, torch.device("cpu"), end, start=start, track="copies up", clock=clock).span()

    assert isinstance(span, Span)
    assert span.track == "copies up"
    assert before + 0.25 <= span.start <= after + 0.25
    assert abs(span.stop - span.start - 0.05) < 1e-9


def test_a_device_without_streams_takes_no_times() -> None:
    streams = InOrder()
    streams.take_times(True)

    copied = streams.copy_up(torch.zeros(4), torch.ones(4), ())

    assert copied.done()
    assert copied.span() is None
