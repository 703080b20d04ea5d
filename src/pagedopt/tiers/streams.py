"""The order of work on an accelerator: updates on the caller's stream, copies up on one stream, down on another.

    caller's stream   ──update A──●──────────────────────wait──update C──▶        ● an event is recorded
    down                     wait──copy A out──●                                  wait: the stream waits for one
    up                                   wait──copy C in──●

The host waits for nothing here: streams wait for events. `torch.get_device_module` has the streams of CUDA, ROCm and
XPU under the same names. A device without streams copies at once, and everything is in order by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from pagedopt.tiers.base import Span, Transfer


class Mark(Transfer, Protocol):
    """A point on a stream: it ends when all that the stream was given before it has ended.

    `wait` makes the current stream wait, `synchronize` the host.
    """

    def synchronize(self) -> None:
        """Return when it ended."""
        ...


class Streams(Protocol):
    """The streams of one device.

    A copy starts when those in `after` have ended, and keeps the memory of both tensors from being used for anything
    else until it has ended.
    """

    def current(self) -> Any:
        """Return the stream that the caller's work goes to now; streams compare equal if they are the same."""
        ...

    def hand_over(self, tensor: Tensor, stream: Any) -> None:
        """Let the current stream use `tensor` after all that `stream` was given so far."""
        ...

    def mark(self, stream: Any) -> Mark | None:
        """Return the point that `stream` has come to; None where everything is in order by itself."""
        ...

    def copy_up(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        """Start copying host memory to the device, on the stream for that.

        Raises:
            RuntimeError: the device refused.
        """
        ...

    def copy_down(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        """Start copying device memory to the host, on the stream for that. Raises as `copy_up`."""
        ...

    def finish_copies(self) -> None:
        """Return when all copies have ended."""
        ...

    def take_times(self, is_wanted: bool) -> None:
        """From now on let copies know when they ran, or no longer: taking the time costs a little."""
        ...


class Ended:
    """A `Mark` in the past."""

    __slots__ = ()

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return

    def synchronize(self) -> None:
        return

    def span(self) -> None:
        return None


class InOrder:
    """The `Streams` of a device that has none: a copy has ended when the call returns."""

    def current(self) -> None:
        return None

    def hand_over(self, tensor: Tensor, stream: Any) -> None:  # noqa: ARG002 - there is nothing to do
        return

    def mark(self, stream: Any) -> None:  # noqa: ARG002 - there is nothing to mark
        return None

    def copy_up(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        return self._copy(into, source, after)

    def copy_down(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        return self._copy(into, source, after)

    def finish_copies(self) -> None:
        return

    def take_times(self, is_wanted: bool) -> None:  # noqa: ARG002 - who started a copy has seen it end
        return

    def _copy(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        for transfer in after:
            transfer.wait()
        into.copy_(source)
        return Ended()


class _EventMark:
    """An event that was recorded on a stream of `module`."""

    __slots__ = ("_device", "_event", "_module")

    def __init__(self, module: ModuleType, device: torch.device, event: Any) -> None:
        self._module, self._device, self._event = module, device, event

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._module.current_stream(self._device).wait_event(self._event)

    def synchronize(self) -> None:
        self._event.synchronize()

    def span(self) -> Span | None:
        return None


class DeviceClock:
    """Tells when events of a device happened, in seconds of the host's `time.perf_counter`.

    A point in time is seen by both clocks, here, and the device counts from it. So times are as exact as the two clocks
    run alike, and as the host is quick to see an event: microseconds, and some more after minutes.
    """

    def __init__(self, module: ModuleType, stream: Any) -> None:
        self._zero = module.Event(enable_timing=True)
        self._zero.record(stream)
        self._zero.synchronize()
        self._seconds = time.perf_counter()

    def seconds(self, event: Any) -> float:
        """Return when `event`, which has ended and takes the time, happened."""
        return self._seconds + float(self._zero.elapsed_time(event)) / 1e3


class TimedMark(_EventMark):
    """The end of a copy that knows when it ran.

    Args:
        event: recorded after the copy; start: before it. Both take the time.
        track: what the copy ran on, by name.
    """

    __slots__ = ("_clock", "_start", "_track")

    def __init__(
        self, module: ModuleType, device: torch.device, event: Any, *, start: Any, track: str, clock: DeviceClock
    ) -> None:
        super().__init__(module, device, event)
        self._start, self._track, self._clock = start, track, clock

    def span(self) -> Span | None:
        return Span(self._track, self._clock.seconds(self._start), self._clock.seconds(self._event))


def _new_event(module: ModuleType, device: torch.device, *, timed: bool = False) -> Any:
    """Return an event; a host thread that waits for it sleeps, where the device can wake it, and leaves its core."""
    options = {"enable_timing": True} if timed else {}
    return module.Event(blocking=True, **options) if device.type == "cuda" else module.Event(**options)


class DeviceStreams:
    """The `Streams` of a CUDA, ROCm or XPU device. Thread-safe: which stream is current is told by thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = torch.get_device_module(device)
        self._up = self._module.Stream(device=device)
        self._down = self._module.Stream(device=device)
        self._clock: DeviceClock | None = None

    def current(self) -> Any:
        return self._module.current_stream(self._device)

    def hand_over(self, tensor: Tensor, stream: Any) -> None:
        current = self.current()
        current.wait_stream(stream)
        tensor.record_stream(current)  # the allocator gives it to nobody else before this stream is done with it

    def mark(self, stream: Any) -> Mark:
        event = _new_event(self._module, self._device)
        event.record(stream)
        return _EventMark(self._module, self._device, event)

    def copy_up(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        return self._copy(self._up, "copies up", into, source, after)

    def copy_down(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        return self._copy(self._down, "copies down", into, source, after)

    def finish_copies(self) -> None:
        self._up.synchronize()
        self._down.synchronize()

    def take_times(self, is_wanted: bool) -> None:
        self._clock = DeviceClock(self._module, self._up) if is_wanted else None

    def _copy(self, stream: Any, track: str, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        on_device, clock = into if stream is self._up else source, self._clock
        with self._module.stream(stream):
            for transfer in after:
                transfer.wait()
            start = None if clock is None else self._timed_event(stream)
            into.copy_(source, non_blocking=True)  # torch's pinned allocator notes the stream for the host's side
            on_device.record_stream(stream)
        if clock is None:
            return self.mark(stream)
        end = self._timed_event(stream)
        return TimedMark(self._module, self._device, end, start=start, track=track, clock=clock)

    def _timed_event(self, stream: Any) -> Any:
        event = _new_event(self._module, self._device, timed=True)
        event.record(stream)
        return event


def has_streams(device: torch.device) -> bool:
    """Return whether copies on `device` can run beside its computation."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "Stream")
