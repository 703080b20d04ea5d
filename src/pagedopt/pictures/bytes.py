"""Where the bytes of the state were over time, and how many had been moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from pagedopt.pictures.style import BLACK, DARK, LIGHT, MIDDLE, PALE, finish, new_figure
from pagedopt.pictures.trace_read import DeviceTrace, Sample
from pagedopt.units import format_bytes

PLACES = {"frames": (LIGHT, "in frames"), "host": (MIDDLE, "in RAM, no frame"), "disk": (DARK, "on disk, no frame")}
"""From the bottom up, with what they are called."""

MOST_SAMPLES = 300
"""Points along the time axis: more than a picture has columns would only make the file large."""


def draw_bytes(trace: DeviceTrace) -> Figure:
    """Return the picture of bytes by place, and under it of bytes moved, over time."""
    figure = new_figure()
    places, moved = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_places(places, trace)
    _draw_moved(moved, thinned(trace.moved))
    return figure


def thinned(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples, at most `MOST_SAMPLES` of them and the last."""
    stride = max(1, -(-len(samples) // MOST_SAMPLES))
    return [*samples[::stride], *samples[-1:]]


def _draw_places(axes: Axes, trace: DeviceTrace) -> None:
    samples = thinned(trace.state)
    seconds = [sample.seconds for sample in samples]
    shown = {place: text for place, text in PLACES.items() if any(sample.values[place] for sample in samples)}
    bottoms = [0] * len(samples)
    for place, (shade, text) in shown.items():
        tops = [bottom + sample.values[place] for bottom, sample in zip(bottoms, samples, strict=True)]
        area = axes.fill_between(seconds, bottoms, tops, step="post", edgecolor=BLACK, linewidth=0, label=text)
        area.set(facecolor=shade.colour, hatch=shade.hatch)
        bottoms = tops
    if trace.budget_nbytes is not None:
        axes.axhline(trace.budget_nbytes, color=PALE.colour, linewidth=4)  # seen on whatever is behind it
        axes.axhline(trace.budget_nbytes, color=BLACK, linestyle="--", linewidth=1.5, label="budget of frames")
    _in_bytes(axes)
    finish(axes, title=f"Where the state of {trace.device} is")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _draw_moved(axes: Axes, samples: list[Sample]) -> None:
    seconds = [sample.seconds for sample in samples]
    marks = max(1, len(samples) // 12)
    for name, line, marker in (("read", "-", "o"), ("written", "--", "x")):
        values = [sample.values[name] for sample in samples]
        axes.plot(seconds, values, line, color=BLACK, marker=marker, markevery=marks, markersize=5, label=name)
    _in_bytes(axes)
    finish(axes, title="Bytes moved since the trace began", x="seconds")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _in_bytes(axes: Axes) -> None:
    """Label the axis from 0 on in powers of two, as bytes are counted."""
    top = max(axes.get_ylim()[1], 1.0)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(top / 6))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
