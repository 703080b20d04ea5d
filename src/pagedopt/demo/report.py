"""The outcome as a table and a verdict."""

from __future__ import annotations

from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from pagedopt.demo.outcome import Check, Outcome, checks
from pagedopt.demo.paging import PagingUse
from pagedopt.demo.training import VALIDATION_SEQUENCES, Recipe, Run
from pagedopt.units import format_bytes

_Row = tuple[str, list[str]]
"""The head of a row, and its text for each run."""


def print_report(console: Console, outcome: Outcome, recipe: Recipe) -> bool:
    """Print the table, how it was measured and each check; return whether all hold."""
    console.print(results_table(outcome, recipe.device))
    console.print(how_measured(outcome, recipe), style="dim", highlight=False)
    results = checks(outcome)
    for check in results:
        console.print(verdict(check), highlight=False, soft_wrap=True)
    return all(check.holds for check in results)


def results_table(outcome: Outcome, device: torch.device) -> Table:
    """Return the runs side by side, a column each."""
    runs = (outcome.baseline, outcome.reseeded, outcome.paged)
    table = Table()
    table.add_column("")
    for run in runs:
        table.add_column(f"{run.name}\nseed {run.seed}", justify="right")
    for head, texts in _run_rows(runs) + _paging_rows(outcome.use, device):
        table.add_row(head, *texts)
    return table


def how_measured(outcome: Outcome, recipe: Recipe) -> str:
    """Return what the numbers of the table and of the first check mean."""
    num_bytes = VALIDATION_SEQUENCES * recipe.shape.context
    return (
        f"Losses are in nats per byte. Training loss: mean of the last tenth of {recipe.steps} steps. Validation loss: "
        f"the same {num_bytes} bytes of files not trained on, for all runs. Spread of two seeds: the mean distance of "
        f"two validation curves of the baseline ({len(outcome.baseline.checks)} points) with seeds "
        f"{outcome.baseline.seed} and {outcome.reseeded.seed}, which change first weights and batches. Seconds: median "
        f"of the steps. Bytes moved: the most of any step from the third on."
    )


def verdict(check: Check) -> str:
    """Return a check as one line."""
    return f"{'PASS' if check.holds else 'FAIL'}  {check.question}: {check.numbers}"


def _run_rows(runs: tuple[Run, Run, Run]) -> list[_Row]:
    return [
        ("training loss", [f"{run.final_loss:.4f}" for run in runs]),
        ("validation loss", [f"{run.final_check:.4f}" for run in runs]),
        ("forward + backward", [_milliseconds(run.median_model_seconds) for run in runs]),
        ("optimizer step", [_milliseconds(run.median_optimizer_seconds) for run in runs]),
        ("optimizer state", [format_bytes(run.state_nbytes) for run in runs]),
    ]


def _paging_rows(use: PagingUse, device: torch.device) -> list[_Row]:
    memory = "in RAM" if device.type == "cpu" else f"on {device}"
    rows = [
        ("waiting for pages", _milliseconds(median(use.stalled_seconds))),
        (f"frames {memory}", format_bytes(use.frame_nbytes)),
        ("their budget", format_bytes(use.budget_nbytes)),
        ("pages in RAM behind them", format_bytes(use.host_nbytes)),
        ("spill file on disk", format_bytes(use.disk_nbytes)),
        ("read a step", format_bytes(use.steady_read_nbytes)),
        ("written a step", format_bytes(use.steady_written_nbytes)),
        ("live - budget + working set", format_bytes(use.bound_nbytes)),
    ]
    return [(head, ["", "", text]) for head, text in rows]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
