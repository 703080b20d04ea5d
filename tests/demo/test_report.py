"""The printed report: every number under its head, how it was measured, and the verdict."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from pagedopt.demo.model import Shape
from pagedopt.demo.outcome import Outcome
from pagedopt.demo.report import print_report
from pagedopt.demo.training import Recipe

RECIPE = Recipe(Shape(depth=1, width=64, context=64), 20, torch.device("cpu"))


def _printed(outcome: Outcome) -> tuple[str, bool]:
    console = Console(width=200, record=True, file=io.StringIO())
    holds = print_report(console, outcome, RECIPE)
    return console.export_text(), holds


@pytest.mark.parametrize(
    ("head", "texts"),
    [
        ("training loss", ["2.1500", "2.1000", "2.1600"]),
        ("validation loss", ["2.1000", "2.0500", "2.1100"]),
        ("forward + backward", ["200 ms", "200 ms", "200 ms"]),
        ("optimizer step", ["50 ms", "50 ms", "50 ms"]),
        ("optimizer state", ["72 MiB", "72 MiB", "15 MiB"]),
        ("waiting for pages", ["", "", "4 ms"]),
        ("frames in RAM", ["", "", "4 MiB"]),
        ("their budget", ["", "", "4 MiB"]),
        ("spill file on disk", ["", "", "16 MiB"]),
        ("read a step", ["", "", "14 MiB"]),
        ("written a step", ["", "", "12 MiB"]),
        ("live - budget + working set", ["", "", "14 MiB"]),
    ],
)
def test_every_number_stands_under_its_run(outcome: Outcome, head: str, texts: list[str]) -> None:
    printed, _ = _printed(outcome)

    row = next(line for line in printed.splitlines() if line.startswith(f"│ {head}"))

    assert [cell.strip() for cell in row.strip("│").split("│")] == [head, *texts]


def test_the_report_says_how_the_spread_was_measured(outcome: Outcome) -> None:
    printed = " ".join(_printed(outcome)[0].split())

    assert "the same 4096 bytes of files not trained on, for all runs" in printed
    assert "mean distance of two validation curves of the baseline (10 points) with seeds 0 and 1" in printed


def test_the_verdict_is_printed_and_returned(outcome: Outcome, paged_shifted: Callable[[float], Outcome]) -> None:
    printed, holds = _printed(outcome)
    failed, failed_holds = _printed(paged_shifted(0.06))

    assert holds
    assert printed.count("PASS") == 3
    assert "PASS  the loss curves agree within the spread of two seeds: 0.0100 against 0.0500 nats per byte" in printed
    assert not failed_holds
    assert (failed.count("PASS"), failed.count("FAIL")) == (2, 1)
    assert "FAIL  the loss curves agree within the spread of two seeds: 0.0600 against 0.0500 nats per byte" in failed


def test_the_report_fits_a_terminal_of_80_columns(outcome: Outcome) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_report(console, outcome, RECIPE)

    rows = [line for line in console.export_text().splitlines() if line.startswith("│")]

    assert len(rows) == 13
    assert max(map(len, rows)) <= 80
