"""What the time of steps was spent on: bars of update, wait and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pagedopt.pictures.style import BLACK, DARK, LIGHT, MIDDLE, finish, legend_below, new_figure
from pagedopt.pictures.trace_read import StepTime

PARTS = (
    ("update", DARK, "updating pages"),
    ("wait", MIDDLE, "waiting for transfers"),
    ("other", LIGHT, "all else: gradients checked, transfers started"),
)

MOST_BARS = 40
"""With more steps, a bar is the mean of several."""


def draw_times(steps: Sequence[StepTime]) -> Figure:
    """Return the picture of what each step's time was spent on."""
    figure = new_figure()
    axes = figure.add_subplot()
    width = max(1, -(-len(steps) // MOST_BARS))
    groups = [steps[i : i + width] for i in range(0, len(steps), width)]
    centres = [group[0].number + (width - 1) / 2 for group in groups]
    bottoms = [0.0] * len(groups)
    parts: list[Patch] = []
    for part, shade, text in PARTS:
        heights = [fmean(getattr(step, part) for step in group) * 1e3 for group in groups]
        bars = axes.bar(centres, heights, 0.8 * width, bottoms, edgecolor=BLACK, linewidth=0.5)
        shade.fill(bars)
        parts.append(bars.patches[0])
        parts[-1].set_label(text)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    of = "" if width == 1 else f" (a bar is the mean of {width} steps)"
    finish(axes, title=f"Where the step's time went{of}", x="step", y="milliseconds")
    legend_below(axes, parts)
    return figure
