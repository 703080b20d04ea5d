"""The whole demo, small: a real model, the real optimizer, real pages on a real disk."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pagedopt import BudgetError
from pagedopt.demo.paging import parse_budget
from pagedopt.demo.show import Options, show

NUM_PARAMS = 1_000_000
"""The smallest state of which a quarter is several working sets of the smallest pages."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _options(out: Path, *, budget: str = "25%") -> Options:
    return Options(torch.device("cpu"), 3, parse_budget(budget), NUM_PARAMS, out, seed=0)


def test_the_demo_passes_and_leaves_its_pictures_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill))
    console = Console(width=100, record=True, file=io.StringIO())

    holds = show(_options(tmp_path / "new" / "out"), console)

    printed = console.export_text()
    assert holds, printed
    assert "1,439,040 parameters" in printed
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["loss.png", "residency.png"]
    assert [path for path in spill.rglob("*") if path.is_file()] == []


def test_a_budget_below_the_working_set_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("pagedopt.demo.show.train", no_training)

    with pytest.raises(BudgetError, match="set max_host_memory to at least 327680 bytes"):
        show(_options(tmp_path, budget="100000"), Console(file=io.StringIO()))
