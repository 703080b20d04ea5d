"""What all pictures have in common: size, shades that brightness alone tells apart, and files that come out alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

SIZE = (9.6, 5.4)
"""Inches."""

DPI = 150


@dataclass(frozen=True, slots=True)
class Shade:
    """A filling: a colour, and a hatch for where a colour is not enough."""

    colour: str
    hatch: str = ""

    def fill(self, patches: Iterable[Patch]) -> None:
        """Give `patches` this filling."""
        for patch in patches:
            patch.set_facecolor(self.colour)
            patch.set_hatch(self.hatch)


DARK = Shade("#0b2545")
MIDDLE = Shade("#d9822b", "////")
LIGHT = Shade("#c9d9e8", "\\\\\\\\")
PALE = Shade("#ffffff")
"""Their brightness is 14 %, 62 %, 84 % and 100 %."""

BAND = "#dddddd"
GREY = "#8a8a8a"
BLACK = "#000000"


def new_figure(size: tuple[float, float] = SIZE) -> Figure:
    """Return an empty picture of `size` inches."""
    return Figure(figsize=size, dpi=DPI, layout="constrained")


def finish(axes: Axes, *, title: str, x: str = "", y: str = "") -> None:
    """Give axes their texts, without the lines that frame nothing."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, handles: Sequence[Artist]) -> None:
    """Put a legend of one line under the axes, where it hides nothing."""
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(handles), frameon=False)


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write `stem` with the ending of each format; return the files.

    Raises:
        OSError: a file cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in formats]
    # Text stays text, so that an SVG is small and can be searched; the same picture is the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pagedopt", "hatch.linewidth": 0.6}):
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths
