"""The outcome as two PNG files that can be read in black and white. Drawn without a window system."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pagedopt.demo.outcome import Outcome
from pagedopt.pictures.pages import draw_residency
from pagedopt.pictures.residency import Residency
from pagedopt.pictures.style import BAND, BLACK, GREY, finish, new_figure, save


def draw(folder: Path, outcome: Outcome, residency: Residency) -> list[Path]:
    """Write the two pictures and return their files."""
    losses = save(draw_losses(outcome), folder / "loss", ("png",))
    pages = draw_residency(residency, page_nbytes=outcome.use.page_nbytes)
    return losses + save(pages, folder / "residency", ("png",))


def draw_losses(outcome: Outcome) -> Figure:
    """Return the picture of the training and validation curves of all runs."""
    figure = new_figure()
    axes = figure.add_subplot()
    window = max(1, len(outcome.baseline.losses) // 20)
    curves = [running_mean(run.losses, window) for run in (outcome.baseline, outcome.reseeded, outcome.paged)]
    steps = range(window, window + len(curves[0]))

    axes.fill_between(steps, curves[0], curves[1], color=BAND, label="between two seeds of AdamW", linewidth=0)
    axes.plot(steps, curves[0], color=GREY, linewidth=4, label="AdamW, training")
    axes.plot(steps, curves[2], color=BLACK, linewidth=1.2, linestyle="--", label="PagedAdamW8bit, training")
    baseline, paged = outcome.baseline.checks, outcome.paged.checks
    axes.plot(list(baseline), list(baseline.values()), "o", ms=9, mfc="none", mec=GREY, label="AdamW, validation")
    axes.plot(list(paged), list(paged.values()), "x", ms=6, color=BLACK, label="PagedAdamW8bit, validation")
    finish(axes, title=f"Loss (training: running mean of {window})", x="step", y="loss, nats per byte")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def running_mean(values: list[float], window: int) -> list[float]:
    """Return the mean of each `window` values in a row: `len(values) - window + 1` of them."""
    return [fmean(values[i : i + window]) for i in range(len(values) - window + 1)]
