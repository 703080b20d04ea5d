"""Where each page was while each was updated: a row a page, a column an update."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pagedopt.pictures.residency import Cell, Residency
from pagedopt.pictures.style import DARK, LIGHT, MIDDLE, PALE, finish, legend_below, new_figure
from pagedopt.units import format_bytes

CELLS = {
    Cell.AWAY: (PALE.colour, "paged out"),
    Cell.RESIDENT: (LIGHT.colour, "resident"),
    Cell.WRITTEN: (MIDDLE.colour, "written back"),
    Cell.READ: (DARK.colour, "read"),
}


def draw_residency(residency: Residency, *, page_nbytes: int, first_step: int = 1, sampled: int = 1) -> Figure:
    """Return the picture of where each page was over the recorded steps.

    Args:
        residency: columns by update, cells by page.
        page_nbytes: bytes of a page.
        first_step: the number of the first step that was recorded.
        sampled: only every so many-th page is shown.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    pages = [list(row) for row in zip(*residency.columns, strict=True)]
    colours = ListedColormap([colour for colour, _ in CELLS.values()])
    axes.imshow(
        pages,
        cmap=colours,
        norm=BoundaryNorm(range(len(CELLS) + 1), colours.N),
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        extent=(0, len(residency.columns), -0.5, len(pages) - 0.5),
    )
    of_pages = f"page ({format_bytes(page_nbytes)} each)" if sampled == 1 else f"every {sampled}th page"
    finish(axes, title="Where the pages of the optimizer's state are", x="time, in updates of a page", y=of_pages)
    axes.spines[["top", "right"]].set_visible(True)
    _mark_steps(axes, residency.step_ends, first_step)
    shown = [Patch(facecolor=colour, edgecolor="black", label=text) for colour, text in CELLS.values()]
    legend_below(axes, shown)
    return figure


def _mark_steps(axes: Axes, step_ends: list[int], first_step: int) -> None:
    starts = [0, *step_ends[:-1]]
    for end in step_ends[:-1]:
        axes.axvline(end, color="black", linewidth=1)
    middles = [(start + end) / 2 for start, end in zip(starts, step_ends, strict=True)]
    axes.set_xticks(middles, [f"step {first_step + i}" for i in range(len(step_ends))])
    axes.tick_params(axis="x", length=0)
