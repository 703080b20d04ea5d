"""What must be reached: judged on the right side, and about cases and candidates that there are."""

from __future__ import annotations

import pytest
from made_up import contest, results, timing

from bench import cases, checkpoint, gpu_cases, peers
from bench.bars import BARS, LOAD, SAVE, Bar, bars_of
from bench.measure import Spread, spread
from bench.report import bar_row
from bench.results_file import Results
from bench.training import PAGED, RESIDENT


def at_most(bar: float, aim: float) -> Bar:
    return Bar("cpu", "a / b", lambda _: None, bar, aim)


def at_least(bar: float, aim: float) -> Bar:
    return Bar("cpu", "a / b", lambda _: None, bar, aim, at_least=True)


def median(number: float) -> Spread:
    return spread([number])


@pytest.mark.parametrize(
    ("bar", "found", "judgement"),
    [
        (at_most(1.0, 0.5), 0.5, "aim"),
        (at_most(1.0, 0.5), 1.0, "bar"),
        (at_most(1.0, 0.5), 1.2, "missed by 20%"),
        (at_least(0.8, 0.95), 0.96, "aim"),
        (at_least(0.8, 0.95), 0.8, "bar"),
        (at_least(0.8, 0.95), 0.6, "missed by 25%"),
        (at_most(0.0, 0.0), 0.0, "aim"),
        (at_most(0.0, 0.0), 2.0, "missed"),
    ],
)
def test_a_bar_is_judged_by_the_median(bar: Bar, found: float, judgement: str) -> None:
    assert bar_row(bar, median(found))[-1] == judgement


def test_what_was_not_measured_is_said_and_not_claimed() -> None:
    assert bar_row(at_most(1.0, 0.5), None)[3] == "not measured"


def test_every_bar_is_about_a_case_and_candidates_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Everything(Results):
        __slots__ = ()

        def contest(self, case: str) -> object:  # type: ignore[override]
            class AnyContest:
                def time_ratio(self, name: str, baseline: str) -> None:
                    asked.extend([(case, name), (case, baseline)])

                def share(self, name: str) -> None:
                    asked.append((case, name))

            return AnyContest()

    names = {entrant.name for entrant in peers.ENTRANTS}
    names |= {gpu_cases.BITSANDBYTES_PAGED, PAGED, RESIDENT, "paged 25 %", SAVE, LOAD}
    for kind, known in (("cpu", cases.CASES), ("gpu", gpu_cases.CASES), ("checkpoint", checkpoint.CASES)):
        asked.clear()
        made = results(kind=kind)
        bars_of(Everything(*(getattr(made, name) for name in Results.__slots__)))
        assert asked
        assert {case for case, _ in asked} <= set(known)
        assert {name for _, name in asked} <= names


def test_bars_are_found_in_results() -> None:
    found = results(
        contests=(contest("one-float32", timing("torch fused", 1.0, 1.0), timing("pagedopt 8-bit", 0.5, 0.7)),),
        transients=(),
    )
    measured = {bar.text: spread_found for bar, spread_found in bars_of(found) if spread_found is not None}
    assert list(measured) == ["8-bit, float32, 50M: time / torch fused 32-bit"]
    assert next(iter(measured.values())).median == pytest.approx(0.6)


def test_the_aim_is_beyond_the_bar() -> None:
    for bar in BARS:
        assert bar.aim >= bar.bar if bar.at_least else bar.aim <= bar.bar
