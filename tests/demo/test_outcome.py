"""The demo's verdict: each check passes for the right reason, and fails for its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pagedopt.demo.outcome import Outcome, checks, gap

MIB = 1 << 20


def _verdict(outcome: Outcome) -> list[bool]:
    return [check.holds for check in checks(outcome)]


def test_a_gap_is_the_mean_distance_of_two_validation_curves(outcome: Outcome) -> None:
    zigzag = replace(outcome.baseline, checks={s: loss + (-1) ** s * s for s, loss in outcome.baseline.checks.items()})

    assert gap(zigzag, outcome.baseline) == pytest.approx(sum(outcome.baseline.checks) / len(outcome.baseline.checks))
    assert outcome.paged_gap == pytest.approx(0.01)
    assert outcome.seed_gap == pytest.approx(0.05)


def test_all_checks_hold_when_the_curves_agree_and_the_bytes_are_kept(outcome: Outcome) -> None:
    assert _verdict(outcome) == [True, True, True]


def test_a_paged_curve_further_away_than_another_seed_fails(paged_shifted: Callable[[float], Outcome]) -> None:
    assert _verdict(paged_shifted(-0.06)) == [False, True, True]


def test_a_curve_of_nan_fails(paged_shifted: Callable[[float], Outcome]) -> None:
    assert _verdict(paged_shifted(float("nan"))) == [False, True, True]


def test_a_byte_over_the_budget_fails(outcome: Outcome) -> None:
    over = replace(outcome.use, frame_nbytes=4 * MIB + 1)

    assert _verdict(replace(outcome, use=over)) == [True, False, True]


@pytest.mark.parametrize("direction", ["read_nbytes", "written_nbytes"])
def test_one_step_that_moves_more_than_the_bound_fails(outcome: Outcome, direction: str) -> None:
    moved = list(getattr(outcome.use, direction))
    moved[11] = outcome.use.bound_nbytes + 1

    assert _verdict(replace(outcome, use=replace(outcome.use, **{direction: moved}))) == [True, True, False]
