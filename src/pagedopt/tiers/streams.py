"""The order of work on an accelerator: updates on the caller's stream, copies up on one stream, down on another.

    caller's stream   ──update A──●──────────────────────wait──update C──▶        ● an event is recorded
    down                     wait──copy A out──●                                  wait: the stream waits for one
    up                                   wait──copy C in──●

The host waits for nothing here: streams wait for events. `torch.get_device_module` has the streams of CUDA, ROCm and
XPU under the same names. A device without streams copies at once, and everything is in order by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from pagedopt.tiers.base import Transfer


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

    def _copy(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        for transfer in after:
            transfer.wait()
        into.copy_(source)
        return Ended()


class _EventMark:
    """An event that was recorded on a stream of `module`."""

    __slots__ = ("_device", "_event", "_module")

    def __init__(self, module: ModuleType, device: torch.device, stream: Any) -> None:
        self._module, self._device = module, device
        # A host thread that waits for it sleeps, where the device can wake it, and leaves its core to others.
        self._event = module.Event(blocking=True) if device.type == "cuda" else module.Event()
        self._event.record(stream)

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._module.current_stream(self._device).wait_event(self._event)

    def synchronize(self) -> None:
        self._event.synchronize()

    def span(self) -> None:
        return None  # an event that takes the time costs more, and the device has another clock


class DeviceStreams:
    """The `Streams` of a CUDA, ROCm or XPU device. Thread-safe: which stream is current is told by thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = torch.get_device_module(device)
        self._up = self._module.Stream(device=device)
        self._down = self._module.Stream(device=device)

    def current(self) -> Any:
        return self._module.current_stream(self._device)

    def hand_over(self, tensor: Tensor, stream: Any) -> None:
        current = self.current()
        current.wait_stream(stream)
        tensor.record_stream(current)  # the allocator gives it to nobody else before this stream is done with it

    def mark(self, stream: Any) -> Mark:
        return _EventMark(self._module, self._device, stream)

    def copy_up(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        return self._copy(self._up, into, source, after, on_device=into)

    def copy_down(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> Mark:
        return self._copy(self._down, into, source, after, on_device=source)

    def finish_copies(self) -> None:
        self._up.synchronize()
        self._down.synchronize()

    def _copy(self, stream: Any, into: Tensor, source: Tensor, after: Sequence[Transfer], *, on_device: Tensor) -> Mark:
        with self._module.stream(stream):
            for transfer in after:
                transfer.wait()
            into.copy_(source, non_blocking=True)  # torch's pinned allocator notes the stream for the host's side
            on_device.record_stream(stream)
        return self.mark(stream)


def has_streams(device: torch.device) -> bool:
    """Return whether copies on `device` can run beside its computation."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "Stream")
