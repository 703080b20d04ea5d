"""From what pagers tell to the events of a trace: tracks, slices, flows and counters. Knows no file and no pager.

    a thread that steps     step ─┬─ wait    a pin (or a flush) had to wait for a transfer or a frame
                                  └─ update  a page, from its pin to its unpin
    an I/O thread           read, write      the bytes of a page, as they moved
    instants                fault, prefetch, resident, away, evict, drop, gone, and what did not end well
    counters                state: bytes in frames, and of what has no frame in RAM and on disk; moved: since the start
    flows                   read → the update that needed it → its write

A pin of which no update is known (a checkpoint, `optimizer.state`, an optimizer that shares the pager) is called `use`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from pagedopt.observe.trace_file import TraceEvent
from pagedopt.paging.events import PageEvent
from pagedopt.tiers.base import HOMES, Home, Span


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that was told.

    Attributes:
        seconds: on the clock of `time.perf_counter`.
        thread: the name of the thread that it was told in.
        device: whose pager told it; empty for what is no pager's.
        what: an event of a page, or `step begins` and `step ended`.
        is_stepping: whether an optimizer steps then, be it a parameter at a time.
    """

    seconds: float
    thread: str
    device: str
    what: PageEvent | str
    is_stepping: bool = False


PLACES = ("frames", *HOMES)
"""Where the bytes of a page can be. What is in a frame is counted there, whatever its home has."""

_Point = tuple[str, float]
"""A track and a time on it, in seconds."""

STEP_BEGINS, STEP_ENDED = "step begins", "step ended"


@dataclass(slots=True)
class _Counts:
    """What was done in a step."""

    hits: int = 0
    faults: int = 0
    prefetches: int = 0
    waits: int = 0
    waited_seconds: float = 0.0
    updates: int = 0
    updated_seconds: float = 0.0
    read_nbytes: dict[Home, int] = field(default_factory=lambda: dict.fromkeys(HOMES, 0))
    written_nbytes: dict[Home, int] = field(default_factory=lambda: dict.fromkeys(HOMES, 0))


@dataclass(slots=True)
class _Step:
    """A step that has begun and not ended: where it is in the trace's count, and what was done so far."""

    number: int
    begin: float
    counts: _Counts = field(default_factory=_Counts)


@dataclass(slots=True)
class _Pages:
    """What is known about the pages of one device.

    Attributes:
        places: where each page is: in `frames`, or at `host` or `disk`; counts: how many are in each place.
        under_way: when the transfer of a page was started, by page and `read` or `write`.
        found: how a page was found that is about to be pinned; ahead: the pages read ahead of a pin.
        pinned: since when.
        filled, used, saving: the slices that the next arrow of a page begins at: of its read, of its last use, and of
            the use that a write under way saves.
        moved: bytes since the trace began.
    """

    page_nbytes: int
    places: dict[int, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    under_way: dict[tuple[int, str], float] = field(default_factory=dict)
    found: dict[int, str] = field(default_factory=dict)
    ahead: set[int] = field(default_factory=set)
    pinned: dict[int, float] = field(default_factory=dict)
    filled: dict[int, _Point] = field(default_factory=dict)
    used: dict[int, _Point] = field(default_factory=dict)
    saving: dict[int, _Point] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=lambda: {"read": 0, "written": 0})

    def put(self, page: int, place: str | None) -> bool:
        """`page` is in `place` now, nowhere if None; return whether it was somewhere else."""
        before = self.places.pop(page, None)
        if before is not None:
            self.counts[before] -= 1
        if place is not None:
            self.places[page] = place
            self.counts[place] += 1
        return before != place

    def forget(self, page: int) -> None:
        """`page` is no more."""
        self.put(page, None)
        self.ahead.discard(page)
        for known in (self.found, self.pinned, self.filled, self.used, self.saving):
            cast("dict[int, object]", known).pop(page, None)


class Timeline:
    """Makes trace events of what is told, in the order in which it was told.

    Args:
        pid: of this process.
        origin: the time, in seconds, that is 0 in the trace.
    """

    def __init__(self, pid: int, origin: float) -> None:
        self._pid = pid
        self._origin = origin
        self._last = origin
        self._tids: dict[str, int] = {}
        self._pages: dict[str, _Pages] = {}
        self._steps: dict[str, _Step] = {}
        self._num_steps = 0
        self._num_flows = 0

    def begin(self) -> Iterator[TraceEvent]:
        """Yield what names the process."""
        yield {"ph": "M", "name": "process_name", "pid": self._pid, "tid": 0, "args": {"name": "pagedopt"}}

    def add_device(self, device: str, page_nbytes: int, thread: str, **facts: int | None) -> Iterator[TraceEvent]:
        """Yield what says that the pages of `device` are traced from now on, with `facts` for whoever reads it."""
        self._pages[device] = _Pages(page_nbytes)
        yield from self._instant(
            f"pager of {device}", self._last, thread, device=device, page_nbytes=page_nbytes, **facts
        )

    def take(self, told: Told) -> Iterator[TraceEvent]:
        """Yield the events of one thing that was told."""
        self._last = max(self._last, told.seconds)
        if isinstance(told.what, PageEvent):
            yield from self._page(told, told.what, self._pages[told.device])
        elif told.what == STEP_BEGINS:
            yield from self._end_step(told.thread, told.seconds, ended="by an exception")
            self._num_steps += 1
            self._steps[told.thread] = _Step(self._num_steps, told.seconds)
        elif told.what == STEP_ENDED:
            yield from self._end_step(told.thread, told.seconds)

    def written(self, thread: str, start: float, stop: float, num_events: int) -> Iterator[TraceEvent]:
        """Yield what says that the trace itself took time."""
        yield from self._slice("trace written", Span(thread, start, stop), events=num_events)

    def end(self, thread: str, seconds: float) -> Iterator[TraceEvent]:
        """Yield what is left to say: steps that did not end, transfers that are still under way."""
        for stepping in list(self._steps):
            yield from self._end_step(stepping, seconds, ended="by an exception")
        for device, pages in self._pages.items():
            for (page, kind), _ in sorted(pages.under_way.items()):
                yield from self._instant(f"{kind} still under way", seconds, thread, page=page, device=device)
        yield from self._instant("end of trace", seconds, thread)

    # -- pages --------------------------------------------------------------------------------------------------------

    def _page(self, told: Told, event: PageEvent, pages: _Pages) -> Iterator[TraceEvent]:
        counts = self._steps[told.thread].counts if told.thread in self._steps else _Counts()
        match event.name:
            case "hit" | "fault" | "prefetch":
                yield from self._found(told, event, pages, counts)
            case "read" | "write":
                yield from self._started(told, event, pages, counts)
            case "wait":
                yield from self._waited(told, event, counts)
            case "filled" | "saved":
                yield from self._moved(told, event, pages)
            case "unpin":
                yield from self._used(told, event.page, pages, counts)
            case _:
                yield from self._placed(told, event, pages)

    def _placed(self, told: Told, event: PageEvent, pages: _Pages) -> Iterator[TraceEvent]:
        """A page came into a frame or left it: `resident, away, pin, evict, drop, gone`."""
        if event.name == "pin":
            pages.pinned.setdefault(event.page, told.seconds)
        else:
            yield from self._instant(event.name, told.seconds, told.thread, page=event.page, device=told.device)
        if event.name == "drop":
            yield from self._failed(told, event.page, pages)
        if event.name == "gone":
            pages.forget(event.page)
            yield self._state(told, pages)
        elif pages.put(event.page, "frames" if event.name in ("pin", "resident") else event.home):
            yield self._state(told, pages)

    def _failed(self, told: Told, page: int, pages: _Pages) -> Iterator[TraceEvent]:
        """Yield which transfers of `page` failed: it loses its frame, and they are not known to have ended."""
        for kind in ("read", "write"):
            if pages.under_way.pop((page, kind), None) is not None:
                yield from self._instant(f"{kind} failed", told.seconds, told.thread, page=page, device=told.device)

    def _found(self, told: Told, event: PageEvent, pages: _Pages, counts: _Counts) -> Iterator[TraceEvent]:
        if event.name == "prefetch":
            counts.prefetches += 1
            pages.ahead.add(event.page)
        elif event.name == "hit":
            counts.hits += 1
            pages.found[event.page] = "prefetched" if event.page in pages.ahead else "resident"
        else:
            counts.faults += 1
            pages.found[event.page] = "fault"
        if event.name != "hit":
            yield from self._instant(event.name, told.seconds, told.thread, page=event.page, device=told.device)

    def _started(self, told: Told, event: PageEvent, pages: _Pages, counts: _Counts) -> Iterator[TraceEvent]:
        """A read or a write of a page was started: this is when its bytes are counted."""
        assert event.home is not None, "a page without a home is never moved"
        pages.under_way[event.page, event.name] = told.seconds
        if event.name == "read":
            counts.read_nbytes[event.home] += pages.page_nbytes
            pages.moved["read"] += pages.page_nbytes
            if pages.put(event.page, "frames"):
                yield self._state(told, pages)
        else:
            counts.written_nbytes[event.home] += pages.page_nbytes
            pages.moved["written"] += pages.page_nbytes
            if event.page in pages.used:
                pages.saving[event.page] = pages.used.pop(event.page)
        yield self._counter(f"{told.device}: bytes moved", told.seconds, pages.moved)

    def _waited(self, told: Told, event: PageEvent, counts: _Counts) -> Iterator[TraceEvent]:
        assert event.span is not None, "a wait was timed"
        counts.waits += 1
        counts.waited_seconds += event.span.stop - event.span.start
        yield from self._slice("wait", event.span, page=event.page, device=told.device)

    def _moved(self, told: Told, event: PageEvent, pages: _Pages) -> Iterator[TraceEvent]:
        """A transfer is known to have ended well, perhaps long after it did."""
        kind = "read" if event.name == "filled" else "write"
        started = pages.under_way.pop((event.page, kind), None)
        facts: dict[str, object] = {"page": event.page, "device": told.device, "tier": event.home}
        facts["bytes"] = pages.page_nbytes
        taken = event.span if event.moving is None else event.moving.span()
        if taken is None:
            yield from self._instant(f"{kind} ended, time not taken", told.seconds, told.thread, **facts)
            return
        span = Span(f"{told.device} {taken.track}", taken.start, taken.stop)
        if started is not None:
            facts["queued_us"] = round((span.start - started) * 1e6, 3)
        yield from self._slice(kind, span, **facts)
        if kind == "read":
            pages.filled[event.page] = span.track, span.start
        elif event.page in pages.saving:
            yield from self._flow("to write", pages.saving.pop(event.page), (span.track, span.start))

    def _used(self, told: Told, page: int, pages: _Pages, counts: _Counts) -> Iterator[TraceEvent]:
        start = pages.pinned.pop(page, None)
        if start is None:  # pinned before the trace began, or by two at once
            return
        if told.is_stepping:
            counts.updates += 1
            counts.updated_seconds += told.seconds - start
        pages.ahead.discard(page)
        facts = {"page": page, "device": told.device, "found": pages.found.pop(page, "resident")}
        yield from self._slice("update" if told.is_stepping else "use", Span(told.thread, start, told.seconds), **facts)
        if page in pages.filled:
            yield from self._flow("to use", pages.filled.pop(page), (told.thread, start))
        pages.used[page] = told.thread, start

    def _state(self, told: Told, pages: _Pages) -> TraceEvent:
        values = {place: count * pages.page_nbytes for place, count in pages.counts.items()}
        return self._counter(f"{told.device}: state", told.seconds, values)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _end_step(self, thread: str, seconds: float, *, ended: str = "") -> Iterator[TraceEvent]:
        step = self._steps.pop(thread, None)
        if step is None:
            return
        counts = step.counts
        moved: dict[str, int] = {}
        for home in HOMES:
            moved[f"{home}_bytes_read"] = counts.read_nbytes[home]
            moved[f"{home}_bytes_written"] = counts.written_nbytes[home]
        yield from self._slice(
            "step",
            Span(thread, step.begin, seconds),
            step=step.number,
            updates=counts.updates,
            update_us=round(counts.updated_seconds * 1e6, 3),
            waits=counts.waits,
            wait_us=round(counts.waited_seconds * 1e6, 3),
            hits=counts.hits,
            faults=counts.faults,
            prefetches=counts.prefetches,
            **moved,
            **({"ended": ended} if ended else {}),
        )

    # -- the format ---------------------------------------------------------------------------------------------------

    def _slice(self, name: str, span: Span, **args: object) -> Iterator[TraceEvent]:
        yield from self._name(span.track)
        start, stop = self._ts(span.start), self._ts(span.stop)
        yield self._event("X", name, start, self._tids[span.track], dur=round(stop - start, 3), args=args)

    def _instant(self, name: str, seconds: float, track: str, **args: object) -> Iterator[TraceEvent]:
        yield from self._name(track)
        yield self._event("i", name, self._ts(seconds), self._tids[track], s="t", args=args)

    def _counter(self, name: str, seconds: float, values: dict[str, int]) -> TraceEvent:
        return self._event("C", name, self._ts(seconds), 0, args=dict(values))

    def _flow(self, name: str, source: _Point, target: _Point) -> Iterator[TraceEvent]:
        self._num_flows += 1
        for ph, (track, seconds) in (("s", source), ("f", target)):
            binding = {"bp": "e"} if ph == "f" else {}
            yield self._event(ph, name, self._ts(seconds), self._tids[track], id=self._num_flows, args={}, **binding)

    def _event(self, ph: str, name: str, ts: float, tid: int, **more: object) -> TraceEvent:
        return {"ph": ph, "cat": "pagedopt", "name": name, "pid": self._pid, "tid": tid, "ts": ts, **more}

    def _name(self, track: str) -> Iterator[TraceEvent]:
        """Yield what names a track, the first time."""
        if track not in self._tids:
            self._tids[track] = tid = len(self._tids) + 1
            for name, args in (("thread_name", {"name": track}), ("thread_sort_index", {"sort_index": tid})):
                yield {"ph": "M", "name": name, "pid": self._pid, "tid": tid, "args": args}

    def _ts(self, seconds: float) -> float:
        """Return microseconds since the trace began, to a nanosecond."""
        return round(max(seconds - self._origin, 0.0) * 1e6, 3)
