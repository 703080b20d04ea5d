"""What the bench measured, as horizontal bars on a logarithmic axis, from the baseline on: left of 1 is faster.

Beside each bar are its quartiles; a dashed line is what must be reached, a dotted one the aim beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pagedopt.pictures.results_read import Comparison, Limit, Ratio, ResultsContent
from pagedopt.pictures.style import BLACK, DARK, LIGHT, SIZE, Shade, finish, new_figure

OURS = ("pagedopt", "paged")
"""Names of our candidates begin with these."""

_BAR_INCHES, _PANEL_INCHES = 0.27, 0.75


def draw_ratios(results: ResultsContent) -> Figure:
    """Return the picture of every comparison: a panel each, a bar for each candidate."""
    counts = [len(comparison.ratios) for comparison in results.comparisons]
    figure = new_figure((SIZE[0], sum(counts) * _BAR_INCHES + len(counts) * _PANEL_INCHES + 0.3))
    panels = figure.subplots(len(counts), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for axes, comparison in zip(panels, results.comparisons, strict=True):
        _draw_comparison(axes, comparison)
    panels[-1].set_xlabel("time of a step over the baseline's: left of 1 is faster")
    figure.suptitle(results.described, fontsize=8, x=0.01, ha="left")
    return figure


def draw_limits(results: ResultsContent) -> Figure:
    """Return the picture of what must be reached: all turned so that 1 is the bar and left of it is better.

    What must be zero is no share of anything: the tables have it, the picture has not.
    """
    limits = [limit for limit in results.limits if limit.bar]
    figure = new_figure((SIZE[0], len(limits) * _BAR_INCHES * 1.3 + 1.2))
    axes = figure.add_subplot()
    _draw_bars(axes, [_as_share(limit) for limit in limits], [DARK] * len(limits))
    for row, limit in enumerate(limits):
        aim = _share(limit, limit.aim)
        axes.plot([aim, aim], [row - 0.45, row + 0.45], color=BLACK, linestyle=":", linewidth=2)
    axes.axvline(1.0, color=BLACK, linestyle="--", linewidth=1.2)
    finish(axes, title="What must be reached", x="share of what is allowed (dashed: the bar, dotted: the aim)")
    figure.suptitle(results.described, fontsize=8, x=0.01, ha="left")
    return figure


def _draw_comparison(axes: Axes, comparison: Comparison) -> None:
    shades = [DARK if ratio.name.startswith(OURS) else LIGHT for ratio in comparison.ratios]
    _draw_bars(axes, comparison.ratios, shades)
    axes.axvline(1.0, color=BLACK, linestyle="--", linewidth=1.2)
    finish(axes, title=f"{comparison.title} (1 is {comparison.baseline})")
    axes.title.set_fontsize(9)


def _draw_bars(axes: Axes, ratios: Sequence[Ratio], shades: Sequence[Shade]) -> None:
    rows = range(len(ratios))
    medians = [ratio.median for ratio in ratios]
    bars = axes.barh(rows, [median - 1.0 for median in medians], 0.7, left=1.0, edgecolor=BLACK, linewidth=0.5)
    for bar, shade in zip(bars, shades, strict=True):
        shade.fill([bar])
    below = [ratio.median - ratio.low for ratio in ratios]
    above = [ratio.high - ratio.median for ratio in ratios]
    axes.errorbar(medians, rows, xerr=(below, above), fmt="none", ecolor=BLACK, elinewidth=3.2, capsize=4)
    axes.errorbar(medians, rows, xerr=(below, above), fmt="none", ecolor="white", elinewidth=1.2)
    for row, ratio in zip(rows, ratios, strict=True):
        end = max(ratio.high, ratio.median, 1.0), row
        axes.annotate(f"{ratio.median:.3g}", end, xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(rows, [ratio.name for ratio in ratios], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _share(limit: Limit, value: float) -> float:
    """Return `value` as a share of what is allowed: over 1 is missed."""
    return limit.bar / value if limit.at_least else value / limit.bar


def _as_share(limit: Limit) -> Ratio:
    sign = "≥" if limit.at_least else "≤"
    ends = sorted((_share(limit, limit.measured.low), _share(limit, limit.measured.high)))
    name = f"{limit.text} {sign} {limit.bar:g}"
    return Ratio(name, _share(limit, limit.measured.median), ends[0], ends[1])
