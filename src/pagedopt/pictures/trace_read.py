"""A trace, as `pagedopt.trace` wrote it, as what its pictures show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedopt.pictures.residency import END_OF_STEP, Event, Residency, residency

MOST_PAGES = 256
"""Rows of a picture of pages: of more pages every so many-th is shown."""

MOST_STEPS = 4
"""Steps of a picture of pages."""

_TOLD = {"read": "read", "write": "write", "update": "pin", "evict": "evict", "drop": "drop", "resident": "resident"}
"""What the names of slices and instants are in a recording."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of a counter at a time, in seconds since the trace began."""

    seconds: float
    values: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StepTime:
    """What one step's time was spent on, in seconds."""

    number: int
    start: float
    seconds: float
    update: float
    wait: float

    @property
    def other(self) -> float:
        """What is neither: gradients checked, transfers started, pages looked up."""
        return max(0.0, self.seconds - self.update - self.wait)


@dataclass(frozen=True, slots=True)
class DeviceTrace:
    """What the pager of one device did.

    Attributes:
        budget_nbytes: the most that frames may take; None: unlimited.
        state: bytes in frames and, of what has no frame, at each home; moved: bytes read and written since the start.
        pages: where each page was, or each `sampled`-th; None if no page was updated in a step.
    """

    device: str
    page_nbytes: int
    budget_nbytes: int | None
    state: Sequence[Sample]
    moved: Sequence[Sample]
    pages: Residency | None
    first_step: int
    sampled: int


@dataclass(frozen=True, slots=True)
class TraceContent:
    """What a trace says."""

    steps: Sequence[StepTime]
    devices: Sequence[DeviceTrace]


def read_trace(events: Sequence[Mapping[str, Any]]) -> TraceContent:
    """Return what the events of a trace say.

    Raises:
        ValueError: it is no trace of pagedopt.
    """
    try:
        setups = [event["args"] for event in events if str(event.get("name", "")).startswith("pager of ")]
        steps = sorted((_step(event) for event in _slices(events, "step")), key=lambda step: step.start)
        devices = [_device(events, setup, steps) for setup in setups]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no trace that pagedopt wrote ({type(error).__name__}: {error})") from error
    if not devices:
        raise ValueError("this is no trace that pagedopt wrote, or it ended before a pager was seen")
    return TraceContent(steps, devices)


def _slices(events: Sequence[Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    return (event for event in events if event["ph"] == "X" and event["name"] == name)


def _step(event: Mapping[str, Any]) -> StepTime:
    args = event["args"]
    return StepTime(args["step"], event["ts"] / 1e6, event["dur"] / 1e6, args["update_us"] / 1e6, args["wait_us"] / 1e6)


def _device(events: Sequence[Mapping[str, Any]], setup: Mapping[str, Any], steps: Sequence[StepTime]) -> DeviceTrace:
    device = setup["device"]
    told = sorted(_told(events, device, steps), key=lambda event: event.seconds)
    sampled = max(1, -(-len({event.page for event in told}) // MOST_PAGES))
    shown = _last_steps(told, steps)
    return DeviceTrace(
        device=device,
        page_nbytes=setup["page_nbytes"],
        budget_nbytes=setup["budget_nbytes"],
        state=_samples(events, f"{device}: state"),
        moved=_samples(events, f"{device}: bytes moved"),
        pages=_residency(told, shown, sampled),
        first_step=shown[0].number if shown else 1,
        sampled=sampled,
    )


def _told(events: Sequence[Mapping[str, Any]], device: str, steps: Sequence[StepTime]) -> Iterator[Event]:
    """Yield what a recording of this pager would have; what was moved, when it moved."""
    for event in events:
        if event["ph"] in "Xi" and event["name"] in _TOLD and event["args"].get("device") == device:
            yield Event(event["ts"] / 1e6, _TOLD[event["name"]], event["args"]["page"])
    for step in steps:
        yield Event(step.start + step.seconds, END_OF_STEP, -1)


def _last_steps(told: Sequence[Event], steps: Sequence[StepTime]) -> list[StepTime]:
    """Return the last steps in which pages of this device were updated."""
    pins = [event.seconds for event in told if event.name == "pin"]
    live = [step for step in steps if any(step.start <= pin <= step.start + step.seconds for pin in pins)]
    return live[-MOST_STEPS:]


def _residency(told: Sequence[Event], shown: Sequence[StepTime], sampled: int) -> Residency | None:
    if not shown:
        return None
    begin, end = shown[0].start, shown[-1].start + shown[-1].seconds
    numbers = {
        page: row for row, page in enumerate(sorted({event.page for event in told if event.page >= 0})[::sampled])
    }
    kept = [
        event._replace(page=numbers.get(event.page, -1), name=_before(event) if event.seconds < begin else event.name)
        for event in told
        if event.seconds <= end and (event.page in numbers or event.name == END_OF_STEP)
    ]
    return residency((event for event in kept if event.name), num_pages=len(numbers))


def _before(event: Event) -> str:
    """Return what an event before the first shown step leaves behind: only where its page is."""
    if event.name in ("read", "pin", "resident"):
        return "resident"
    return event.name if event.name in ("evict", "drop") else ""


def _samples(events: Sequence[Mapping[str, Any]], name: str) -> list[Sample]:
    found = [
        Sample(event["ts"] / 1e6, event["args"]) for event in events if event["ph"] == "C" and event["name"] == name
    ]
    return sorted(found, key=lambda sample: sample.seconds)
