"""Trainers are killed at any moment of training with a spill file and of saving; every survivor loads and goes on.

200 kills here; `make torture` (PAGEDOPT_TORTURE=1) makes 2,000.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from child import report_of

KILLS = 2000 if os.environ.get("PAGEDOPT_TORTURE") else 200
RUNS = 2

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork and no SIGKILL")


@pytest.mark.timeout(1200 if KILLS > 200 else 300)
@pytest.mark.parametrize("seed", range(RUNS))
def test_whoever_is_killed_leaves_a_checkpoint_that_goes_on_to_the_bit(seed: int, tmp_path: Path) -> None:
    script = (Path(__file__).parent / "killing.py").read_text()
    report = report_of(script, KILLS // RUNS, seed, tmp_path, timeout=1150 if KILLS > 200 else 280)
    assert report["wrong"] == []
    assert report["kills"] == KILLS // RUNS
    assert report["in_save"] >= report["kills"] // 10, "kills of savers are what this is for"
    assert report["kills"] - report["in_save"] >= report["kills"] // 20, "and of trainers"
    assert len(set(report["steps"])) > 5, "children do get on between kills"
