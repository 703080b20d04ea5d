"""Times candidates by turns in one process, so that a noisy machine hurts all alike.

    round 1   A A A  B  C C        a turn is one sample: the mean of `repeats` steps, so many that it lasts a while
    round 2   A A A  B  C C        compared are samples of the same round; told is the median of their ratios
    ...

A candidate is checked before it is timed. One that is wrong, or cannot run, is refused with its reason and not timed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_Result = TypeVar("_Result", covariant=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a candidate's result is from the truth, and how far it may be.

    Attributes:
        error: relative to the size of the true update.
        limit: the largest error that is accepted.
        tolerance: the limit's name.
    """

    error: float
    limit: float
    tolerance: str

    @property
    def is_right(self) -> bool:
        return self.error <= self.limit  # false for a NaN


EXACT = Verdict(0.0, 0.0, "exact")
"""Of what has no result to be wrong about: a probe that only moves bytes."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A candidate that was set up and checked.

    Attributes:
        step: what is timed.
        nbytes: bytes that a step moves; 0: not counted.
        before: run ahead of each sample, untimed; a sample is then a single step.
    """

    step: Callable[[], object]
    verdict: Verdict
    nbytes: float = 0.0
    before: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to time.

    Attributes:
        prepare: sets it up, checks it, and warms it up.
        runs: what does the work: a version, a backend, an instruction set.
    """

    name: str
    prepare: Callable[[], Ready]
    runs: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """The samples of one candidate, in seconds per step: sample i is of round i. For `nbytes` see `Ready`."""

    name: str
    nbytes: float
    samples: tuple[float, ...]
    verdict: Verdict
    runs: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a candidate was not timed."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Where `n` numbers lie: their median, the quartiles around it, and the extremes."""

    median: float
    low: float
    high: float
    least: float
    most: float
    n: int


@dataclass(frozen=True, slots=True)
class Case(Generic[_Result]):
    """A contest to be run when its turn comes, so that one that breaks leaves the others alone."""

    name: str
    run: Callable[[], _Result]


class Clock(Protocol):
    """Returns the seconds that one of `repeats` calls of `step` took, with all that they started ended."""

    def __call__(self, step: Callable[[], object], repeats: int) -> float: ...


def wall_clock(step: Callable[[], object], repeats: int) -> float:
    """The clock of steps that are over when they return."""
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: aimed at for each candidate of a contest.
        min_rounds, max_rounds: the rounds a candidate takes part in, whatever that takes or leaves of `seconds`...
        cap_seconds: ...but a candidate so slow that `min_rounds` take longer than this has fewer, and its row says so.
        sample_seconds: a shorter step is repeated until a sample lasts this long.
    """

    seconds: float = 6.0
    min_rounds: int = 5
    max_rounds: int = 40
    cap_seconds: float = 40.0
    sample_seconds: float = 0.02

    def rounds(self, seconds: float) -> int:
        """Return the rounds for a candidate whose sample takes `seconds`."""
        wanted = min(max(int(self.seconds / seconds), self.min_rounds), self.max_rounds)
        return max(min(wanted, int(self.cap_seconds / seconds)), 1)

    def repeats(self, seconds: float) -> int:
        """Return how many steps of `seconds` make a sample."""
        return max(math.ceil(self.sample_seconds / seconds), 1)


QUICK = Effort(seconds=0.0, min_rounds=2, sample_seconds=0.0)
"""For tests of the bench: every step of the way, and numbers that mean nothing."""


@dataclass(slots=True)
class _Turn:
    """A candidate's place in the rounds."""

    candidate: Candidate
    ready: Ready
    repeats: int
    rounds: int
    samples: list[float]
    note: str


def compete(
    candidates: Sequence[Candidate],
    *,
    effort: Effort,
    clock: Clock = wall_clock,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[list[Timing], list[Refusal]]:
    """Check all candidates, then time the right ones by turns."""
    gc.collect()  # optimizers end in cycles, and those of the contest before hold memory that this one needs
    turns: list[_Turn] = []
    refusals: list[Refusal] = []
    for candidate in candidates:
        say(f"checking {candidate.name}")
        found = _prepare(candidate, effort, clock)
        if isinstance(found, Refusal):
            refusals.append(found)
        else:
            turns.append(found)
    for index in range(max((turn.rounds for turn in turns), default=0)):
        say(f"round {index + 1}")
        for turn in [turn for turn in turns if index < turn.rounds]:
            refusal = _take(turn, clock)
            if refusal is not None:
                turns.remove(turn)
                refusals.append(refusal)
    return [_timing(turn) for turn in turns], refusals


def _take(turn: _Turn, clock: Clock) -> Refusal | None:
    """Take a sample; what the others took stands if this one breaks."""
    try:
        turn.samples.append(_sample(turn.ready, turn.repeats, clock))
    except Exception as error:  # noqa: BLE001 - as when it was prepared
        return Refusal(turn.candidate.name, f"broke in round {len(turn.samples) + 1}: {described(error)}")
    return None


def described(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _prepare(candidate: Candidate, effort: Effort, clock: Clock) -> _Turn | Refusal:
    try:
        ready = candidate.prepare()
        verdict = ready.verdict
        if not verdict.is_right:
            return Refusal(
                candidate.name,
                f"wrong: its update is off by {verdict.error:.2e} of its size, {verdict.tolerance} allows "
                f"{verdict.limit:.2e}; not timed",
            )
        seconds = max(_sample(ready, 1, clock), 1e-9)
    except Exception as error:  # noqa: BLE001 - a peer that breaks is a finding about it, not the end of the others
        return Refusal(candidate.name, f"could not run: {described(error)}")
    repeats = 1 if ready.before is not None else effort.repeats(seconds)
    rounds = effort.rounds(seconds * repeats)
    note = f"only {rounds} rounds: a step takes {seconds:.2g} s" if rounds < effort.min_rounds else ""
    return _Turn(candidate, ready, repeats, rounds, [], note)


def _sample(ready: Ready, repeats: int, clock: Clock) -> float:
    if ready.before is not None:
        ready.before()
    return clock(ready.step, repeats)


def _timing(turn: _Turn) -> Timing:
    candidate, ready = turn.candidate, turn.ready
    return Timing(candidate.name, ready.nbytes, tuple(turn.samples), ready.verdict, candidate.runs, turn.note)


def spread(numbers: Sequence[float]) -> Spread:
    """Return where `numbers`, at least one, lie."""
    low, median, high = (
        statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else (numbers[0],) * 3
    )
    return Spread(median, low, high, min(numbers), max(numbers), len(numbers))


def time_ratio(timing: Timing, baseline: Timing) -> Spread:
    """Return how often the baseline's time a candidate takes: ratios of samples of the same round."""
    return spread([sample / base for sample, base in zip(timing.samples, baseline.samples, strict=False)])


def rate_ratio(timing: Timing, baseline: Timing) -> Spread:
    """Return a candidate's bytes per second over the baseline's, by round."""
    scale = timing.nbytes / baseline.nbytes
    return spread([scale * base / sample for sample, base in zip(timing.samples, baseline.samples, strict=False)])
