"""An accelerator that does nothing until it must, and then in whatever order its events allow.

Work given to a stream waits there. Some of it is done at random moments, of any stream whose next piece may run; the
rest when somebody waits for it, and then no more than that takes. So work that should follow a copy, but follows no
event of it, sooner or later does not. And it is not left to chance: each piece has a vector clock, as in a race
detector, and two that use the same bytes, one of them writing, without an order between them end the test at once.

Memory from `allocate` is the device's. Inside `with accelerator:`, what torch does in place to device memory alone goes
to the current stream; what reads device memory waits for the current stream, as on a real one.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pagedopt.kernels.args import Kernel, Operands
from pagedopt.tiers.base import Transfer

POISON = 0xEE
Clock = dict[Any, int]


class RaceError(AssertionError):
    """Two pieces of work use the same bytes and nothing says which comes first."""


@dataclass
class Stream:
    """Work in order: a piece to do, or a mark to wait for."""

    name: str
    queue: deque[Callable[[], None] | SimulatedMark] = field(default_factory=deque)
    num_given: int = 0
    num_done: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(eq=False)
class SimulatedMark:
    accelerator: SimulatedAccelerator
    stream: Stream
    number: int
    clock: Clock

    def is_past(self) -> bool:
        return self.stream.num_done >= self.number

    def done(self) -> bool:
        with self.accelerator.lock:
            if self.is_past():
                self.accelerator.learn(threading.get_ident(), self.clock)
            return self.is_past()

    def wait(self) -> None:
        accelerator = self.accelerator
        with accelerator.lock:
            stream = accelerator.current()
            accelerator.give(stream, self)
            accelerator.learn(stream, self.clock)

    def span(self) -> None:
        return None

    def synchronize(self) -> None:
        with self.accelerator.lock:
            self.accelerator.num_host_waits += 1
            self.accelerator.do_until(self.stream, self.number)
            self.accelerator.learn(threading.get_ident(), self.clock)


class SimulatedAccelerator(TorchDispatchMode):
    """The `Streams` of a device that is not there."""

    def __init__(self, seed: int = 0, eagerness: float = 0.3) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.main, self.side = Stream("main"), Stream("side")
        self.up, self.down = Stream("up"), Stream("down")
        self.num_up = self.num_down = 0
        self.num_finishes = self.num_host_waits = 0
        self._rng = random.Random(seed)
        self._eagerness = eagerness
        self._current: dict[int, Stream] = {}
        self._clocks: dict[Any, Clock] = {}
        self._device: dict[int, int] = {}  # storage -> nbytes
        self._written: dict[int, tuple[Any, int]] = {}
        self._read: dict[int, Clock] = {}

    # -- Streams

    def current(self) -> Stream:
        return self._current.get(threading.get_ident(), self.main)

    def hand_over(self, tensor: Tensor, stream: Stream) -> None:
        assert self.is_here(tensor)
        self.mark(stream).wait()

    def mark(self, stream: Stream) -> SimulatedMark:
        with self.lock:
            self.learn(stream, self._clock(threading.get_ident()))  # who was told of the mark comes after its maker
            return SimulatedMark(self, stream, stream.num_given, dict(self._clock(stream)))

    def copy_up(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> SimulatedMark:
        with self.lock:
            assert self.is_here(into) or self._is_leaving_a_test(into)
            self.num_up += 1
            return self._copy(self.up, into, source, after)

    def copy_down(self, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> SimulatedMark:
        with self.lock:
            assert self.is_here(source)
            self.num_down += 1
            return self._copy(self.down, into, source, after)

    def take_times(self, is_wanted: bool) -> None:
        return

    def finish_copies(self) -> None:
        self.num_finishes += 1
        for stream in (self.up, self.down):
            self.mark(stream).synchronize()

    def _copy(self, stream: Stream, into: Tensor, source: Tensor, after: Sequence[Transfer]) -> SimulatedMark:
        assert into.numel() == source.numel()
        with self.on(stream):
            for transfer in after:
                transfer.wait()
            self.enqueue(lambda: into.copy_(source), reads=[source], writes=[into])
        return self.mark(stream)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        thread, before = threading.get_ident(), self.current()
        self._current[thread] = stream
        try:
            yield
        finally:
            self._current[thread] = before

    # -- memory

    def allocate(self, nbytes: int) -> Tensor:
        with self.lock:
            tensor = torch.full((nbytes,), POISON, dtype=torch.uint8)
            base = tensor.untyped_storage().data_ptr()
            self._device[base] = nbytes
            for start in [start for start in self._written if base <= start < base + nbytes]:
                del self._written[start]
            self._read.pop(base, None)
            return tensor

    def is_here(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._device

    def _is_leaving_a_test(self, tensor: Tensor) -> bool:
        return tensor.numel() == 0

    def _region(self, tensor: Tensor) -> int:
        base = tensor.untyped_storage().data_ptr()
        return base if base in self._device else tensor.data_ptr()

    # -- work

    def enqueue(self, work: Callable[[], object], *, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Give `work` to the current stream."""
        with self.lock:
            stream = self.current()
            self._note(stream, reads, writes)
            self.give(stream, lambda: self._do(work))
            while self._rng.random() < self._eagerness and self._do_one():
                continue

    def give(self, stream: Stream, what: Callable[[], None] | SimulatedMark) -> None:
        stream.queue.append(what)
        stream.num_given += 1

    def do_until(self, stream: Stream, number: int) -> None:
        while stream.num_done < number:
            what = stream.queue.popleft()
            if isinstance(what, SimulatedMark):
                self.do_until(what.stream, what.number)
            else:
                what()
            stream.num_done += 1

    def synchronize(self) -> None:
        """Wait for the current stream, as reading a result does."""
        self.mark(self.current()).synchronize()

    def _do(self, work: Callable[[], object]) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            work()

    def _do_one(self) -> bool:
        ready = []
        for stream in (self.main, self.side, self.up, self.down):
            head = stream.queue[0] if stream.queue else None
            if head is not None and (not isinstance(head, SimulatedMark) or head.is_past()):
                ready.append(stream)
        if ready:
            stream = self._rng.choice(ready)
            self.do_until(stream, stream.num_done + 1)
        return bool(ready)

    # -- the race detector

    def learn(self, who: Any, clock: Clock) -> None:
        mine = self._clock(who)
        for actor, tick in clock.items():
            mine[actor] = max(mine.get(actor, 0), tick)

    def _clock(self, who: Any) -> Clock:
        return self._clocks.setdefault(who, {})

    def _note(self, actor: Any, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        if isinstance(actor, Stream):
            self.learn(actor, self._clock(threading.get_ident()))  # what the host knows to be over is over
        clock = self._clock(actor)
        clock[actor] = clock.get(actor, 0) + 1
        for region in map(self._region, (*reads, *writes)):
            self._expect_after(clock, [self._written[region]] if region in self._written else [])
        for region in map(self._region, writes):
            self._expect_after(clock, list(self._read.pop(region, {}).items()))
            self._written[region] = actor, clock[actor]
        for region in map(self._region, reads):
            self._read.setdefault(region, {})[actor] = clock[actor]

    def _expect_after(self, clock: Clock, earlier: Sequence[tuple[Any, int]]) -> None:
        for actor, tick in earlier:
            if clock.get(actor, 0) < tick:
                name = getattr(actor, "name", "the host")
                raise RaceError(f"nothing says that this comes after what {name} does with the same bytes")

    # -- torch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if self.is_here(tensor)]
        if not here or func.is_view or func is torch.ops.aten.detach.default:
            return func(*args, **kwargs)
        is_in_place = func._schema.name.endswith("_") and self.is_here(args[0])
        if is_in_place and len(here) == len(tensors):
            self.enqueue(lambda: func(*args, **kwargs), reads=here, writes=[args[0]])
            return args[0]
        self.synchronize()
        with self.lock:
            self._note(threading.get_ident(), here, [args[0]] if is_in_place else [])
        return func(*args, **kwargs)


class SimulatedKernel:
    """A kernel whose calls go to the current stream of a simulated accelerator."""

    def __init__(self, kernel: Kernel, accelerator: SimulatedAccelerator) -> None:
        self._kernel = kernel
        self._accelerator = accelerator
        self.name = kernel.name

    def update(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        assert self._accelerator.is_here(frame)
        self._accelerator.enqueue(lambda: self._kernel.update(segments, frame, operands), reads=[frame], writes=[frame])

    def measure(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        self._accelerator.enqueue(lambda: self._kernel.measure(segments, frame, operands), reads=[frame], writes=[])

    def squared_norm(self, grad: Tensor) -> Tensor:
        return self._kernel.squared_norm(grad)
