"""The outcome as two PNG files that can be read in black and white. Drawn without a window system."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pagedopt.demo.outcome import Outcome
from pagedopt.demo.residency import Cell, Residency
from pagedopt.units import format_bytes

SIZE = (9.6, 5.4)
"""Inches."""

DPI = 150

_BASELINE, _PAGED, _BAND = "#8a8a8a", "#000000", "#dddddd"

_CELLS = {
    Cell.AWAY: ("#ffffff", "paged out"),
    Cell.RESIDENT: ("#c9d9e8", "resident"),
    Cell.WRITTEN: ("#d9822b", "written back"),
    Cell.READ: ("#0b2545", "read"),
}
"""Colours whose brightness alone tells them apart: 100 %, 84 %, 62 %, 14 %."""


def draw_losses(path: Path, outcome: Outcome) -> None:
    """Write the training and validation curves of all runs."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    window = max(1, len(outcome.baseline.losses) // 20)
    curves = [running_mean(run.losses, window) for run in (outcome.baseline, outcome.reseeded, outcome.paged)]
    steps = range(window, window + len(curves[0]))

    axes.fill_between(steps, curves[0], curves[1], color=_BAND, label="between two seeds of AdamW", linewidth=0)
    axes.plot(steps, curves[0], color=_BASELINE, linewidth=4, label="AdamW, training")
    axes.plot(steps, curves[2], color=_PAGED, linewidth=1.2, linestyle="--", label="PagedAdamW8bit, training")
    baseline, paged = outcome.baseline.checks, outcome.paged.checks
    axes.plot(list(baseline), list(baseline.values()), "o", ms=9, mfc="none", mec=_BASELINE, label="AdamW, validation")
    axes.plot(list(paged), list(paged.values()), "x", ms=6, color=_PAGED, label="PagedAdamW8bit, validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per byte")
    axes.set_title(f"Loss (training: running mean of {window})", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_residency(path: Path, residency: Residency, *, page_nbytes: int) -> None:
    """Write where each page was while each was updated, over the recorded steps."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    pages = [list(row) for row in zip(*residency.columns, strict=True)]
    colours = ListedColormap([colour for colour, _ in _CELLS.values()])
    axes.imshow(
        pages,
        cmap=colours,
        norm=BoundaryNorm(range(len(_CELLS) + 1), colours.N),
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        extent=(0, len(residency.columns), -0.5, len(pages) - 0.5),
    )
    _mark_steps(axes, residency.step_ends)
    axes.set_ylabel(f"page ({format_bytes(page_nbytes)} each)")
    axes.set_title("Where the pages of the optimizer's state are", loc="left")
    axes.legend(
        handles=[Patch(facecolor=colour, edgecolor="black", label=text) for colour, text in _CELLS.values()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=len(_CELLS),
        frameon=False,
    )
    figure.savefig(path)


def running_mean(values: list[float], window: int) -> list[float]:
    """Return the mean of each `window` values in a row: `len(values) - window + 1` of them."""
    return [fmean(values[i : i + window]) for i in range(len(values) - window + 1)]


def _mark_steps(axes: Axes, step_ends: list[int]) -> None:
    starts = [0, *step_ends[:-1]]
    for end in step_ends[:-1]:
        axes.axvline(end, color="black", linewidth=1)
    middles = [(start + end) / 2 for start, end in zip(starts, step_ends, strict=True)]
    axes.set_xticks(middles, [f"step {i}" for i in range(1, len(step_ends) + 1)])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("time, in updates of a page")
