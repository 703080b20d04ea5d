"""The harness on made-up candidates and a clock that reads what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bench.measure import (
    EXACT,
    QUICK,
    Candidate,
    Effort,
    Ready,
    Timing,
    Verdict,
    compete,
    rate_ratio,
    spread,
    time_ratio,
    wall_clock,
)

WRONG = Verdict(0.5, 0.1, "a tenth")


class Told:
    """A clock whose candidates say how long they take; `machine` slows down from sample to sample."""

    def __init__(self, drift: float = 1.0) -> None:
        self.order: list[str] = []
        self.repeats: dict[str, list[int]] = {}
        self._drift = drift
        self._seconds = 0.0
        self._slowness = 1.0

    def candidate(
        self, name: str, seconds: float, verdict: Verdict = EXACT, nbytes: float = 1.0, **ready: object
    ) -> Candidate:
        def step() -> None:
            self.order.append(name)
            self._seconds = seconds

        return Candidate(name, lambda: Ready(step, verdict, nbytes, **ready))  # type: ignore[arg-type]

    def __call__(self, step: Callable[[], object], repeats: int) -> float:
        step()
        self.repeats.setdefault(self.order[-1], []).append(repeats)
        self._slowness *= self._drift
        return self._seconds * self._slowness


def rounds(number: int) -> Effort:
    return Effort(seconds=0.0, min_rounds=number, max_rounds=number, sample_seconds=0.0)


def test_a_wrong_candidate_is_refused_with_its_error_and_never_timed() -> None:
    told = Told()
    timings, refusals = compete(
        [told.candidate("right", 1.0), told.candidate("wrong", 1.0, WRONG)], effort=rounds(5), clock=told
    )
    assert [timing.name for timing in timings] == ["right"]
    assert "wrong" not in told.order
    assert refusals[0].name == "wrong"
    assert "5.00e-01" in refusals[0].reason
    assert "a tenth" in refusals[0].reason


@pytest.mark.parametrize(("error", "is_right"), [(0.1, True), (0.11, False), (float("nan"), False)])
def test_an_error_beyond_the_limit_or_no_number_is_wrong(error: float, is_right: bool) -> None:
    assert Verdict(error, 0.1, "a tenth").is_right is is_right


def test_a_candidate_that_raises_is_refused_with_its_reason_and_the_others_go_on() -> None:
    def prepare() -> Ready:
        raise RuntimeError("no compiler\nand a long story")

    told = Told()
    timings, refusals = compete([Candidate("broken", prepare), told.candidate("b", 1.0)], effort=rounds(2), clock=told)
    assert [timing.name for timing in timings] == ["b"]
    assert refusals[0].reason == "could not run: RuntimeError: no compiler"


def test_a_candidate_that_breaks_while_it_is_timed_leaves_the_others_their_samples() -> None:
    steps: list[int] = []

    def breaks() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("out of memory")

    def clock(step: Callable[[], object], repeats: int) -> float:
        step()
        return 1.0

    candidates = [Candidate(name, lambda step=step: Ready(step, EXACT)) for name, step in (("a", list), ("b", breaks))]
    timings, refusals = compete(candidates, effort=rounds(4), clock=clock)
    assert [(timing.name, len(timing.samples)) for timing in timings] == [("a", 4)]
    assert refusals[0].reason == "broke in round 2: RuntimeError: out of memory"


def test_candidates_take_turns() -> None:
    told = Told()
    compete([told.candidate(name, 1.0) for name in "abc"], effort=rounds(3), clock=told)
    assert "".join(told.order) == "abc" + "abcabcabc"  # once to see how long it takes, then the rounds


def test_a_machine_that_slows_down_does_not_change_a_ratio() -> None:
    told = Told(drift=1.25)
    (base, twice), _ = compete([told.candidate("a", 1.0), told.candidate("b", 2.0)], effort=rounds(9), clock=told)
    assert base.samples[-1] > 10 * base.samples[0]
    found = time_ratio(twice, base)
    assert found.median == pytest.approx(2 * 1.25)
    assert found.least == pytest.approx(found.most)
    assert found.n == 9


def test_a_slow_candidate_has_fewer_rounds_and_its_row_says_so() -> None:
    effort = Effort(seconds=10.0, min_rounds=5, max_rounds=40, cap_seconds=40.0)
    told = Told()
    candidates = [told.candidate("quick", 0.1), told.candidate("slow", 4.0), told.candidate("slower", 20.0)]
    quick, slow, slower = compete(candidates, effort=effort, clock=told)[0]
    assert [len(timing.samples) for timing in (quick, slow, slower)] == [40, 5, 2]
    assert (quick.note, slow.note) == ("", "")
    assert slower.note == "only 2 rounds: a step takes 20 s"
    assert time_ratio(slower, quick).n == 2


def test_a_short_step_is_repeated_until_a_sample_lasts() -> None:
    told = Told()
    effort = Effort(seconds=0.0, min_rounds=1, sample_seconds=0.02)
    compete([told.candidate("short", 0.003), told.candidate("long", 0.5)], effort=effort, clock=told)
    assert told.repeats == {"short": [1, 7], "long": [1, 1]}


def test_what_comes_before_a_step_is_not_timed_and_the_step_not_repeated() -> None:
    told = Told()
    before: list[int] = []
    candidate = told.candidate("cold", 0.001, before=lambda: before.append(len(told.order)))
    compete([candidate], effort=Effort(seconds=0.0, min_rounds=3, sample_seconds=1.0), clock=told)
    assert before == [0, 1, 2, 3]  # always ahead of the step
    assert set(told.repeats["cold"]) == {1}


def test_the_wall_clock_returns_the_seconds_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    readings: Iterator[float] = iter([10.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(readings))
    steps: list[None] = []
    assert wall_clock(lambda: steps.append(None), 3) == 2.0
    assert len(steps) == 3


def test_a_spread_is_median_quartiles_and_extremes() -> None:
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.least, found.low, found.median, found.high, found.most, found.n) == (1.0, 2.0, 3.0, 4.0, 5.0, 5)
    assert spread([7.0]).low == spread([7.0]).high == 7.0


def test_a_rate_is_bytes_over_seconds_of_the_same_round() -> None:
    half_the_bytes = Timing("a", 50.0, (1.0, 2.0), EXACT)
    ceiling = Timing("memory", 100.0, (1.0, 2.0), EXACT)
    assert rate_ratio(half_the_bytes, ceiling).median == 0.5


def test_a_quick_effort_is_two_rounds_of_one_step() -> None:
    assert (QUICK.rounds(1e-6), QUICK.rounds(1.0), QUICK.repeats(1e-6)) == (2, 2, 1)
