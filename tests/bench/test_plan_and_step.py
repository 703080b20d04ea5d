"""`python -m bench plan`: bytes that are not as planned are wrong always, seconds only where they count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import plan as bench_plan
from bench.__main__ import main
from bench.plan import CASES, Outcome, run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pagedopt.costs.measurement._DISK_PAGES", 32)
    monkeypatch.setattr("pagedopt.costs.measurement._UPDATE_NUMEL", {"cpu": 1 << 16})


def test_a_quick_run_walks_through_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--quick", "--spill-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert printed.count("resident") >= len(CASES)


def outcome(tmp_path: Path, *, seconds: float, moved: int = 0) -> Outcome:
    found = run(CASES[0], tmp_path, torch.device("cpu"), quick=True)
    assert found.moves_as_planned
    rounds = ((1.0, 1.0 * seconds), (1.0, 9.0), (1.0, 0.1))  # what the noise of one round hurts is not the median
    return replace(found, rounds=rounds, moved_nbytes=found.moved_nbytes + moved)


def test_a_page_too_many_and_a_quarter_too_long_are_wrong(tmp_path: Path) -> None:
    assert not outcome(tmp_path, seconds=1.0, moved=65536).moves_as_planned
    assert outcome(tmp_path, seconds=1.2).is_in_time
    assert not outcome(tmp_path, seconds=1.4).is_in_time
    assert not outcome(tmp_path, seconds=0.7).is_in_time


@pytest.mark.parametrize(("quick", "code"), [(False, 1), (True, 0)])
def test_seconds_count_unless_the_run_is_quick(
    quick: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = outcome(tmp_path, seconds=2.0)
    monkeypatch.setattr(bench_plan, "run", lambda *_, **__: late)

    assert bench_plan.compare(tmp_path, "cpu", quick=quick) == code
