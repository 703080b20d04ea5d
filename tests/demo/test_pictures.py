"""The pictures: they are there, of the right size, show what they must, and can be read in black and white."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from pagedopt.demo.outcome import Outcome
from pagedopt.demo.pictures import draw, draw_losses, running_mean
from pagedopt.pictures.pages import CELLS, draw_residency
from pagedopt.pictures.residency import Cell, Residency
from pagedopt.pictures.style import DPI, SIZE

WIDTH, HEIGHT = (round(inches * DPI) for inches in SIZE)

EVERY_CELL = Residency(columns=[[cell] * 2 for cell in Cell] + [[Cell.RESIDENT] * 2], step_ends=[2, 5])


def _brightness(colour: str) -> float:
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_both_pictures_are_written_in_their_size(tmp_path: Path, outcome: Outcome) -> None:
    written = draw(tmp_path, outcome, EVERY_CELL)

    assert written == [tmp_path / "loss.png", tmp_path / "residency.png"]
    for name in ("loss.png", "residency.png"):
        assert imread(tmp_path / name).shape[:2] == (HEIGHT, WIDTH)


def test_the_residency_picture_shows_every_kind_of_cell_in_its_place(tmp_path: Path) -> None:
    draw_residency(EVERY_CELL, page_nbytes=1 << 18).savefig(tmp_path / "residency.png")

    pixels = imread(tmp_path / "residency.png")[HEIGHT // 3, :, :3]
    seen = [pixel for i, pixel in enumerate(pixels.tolist()) if i == 0 or pixel != pixels[i - 1].tolist()]
    order = [colour for colour, _ in (*CELLS.values(), CELLS[Cell.RESIDENT])]
    positions = [
        next(i for i, pixel in enumerate(seen) if pixel == pytest.approx(to_rgb(c), abs=0.01)) for c in order[1:4]
    ]

    assert positions == sorted(positions)


def test_page_0_is_at_the_bottom(tmp_path: Path) -> None:
    draw_residency(Residency([[Cell.READ, Cell.AWAY]], [1]), page_nbytes=1 << 18).savefig(tmp_path / "residency.png")

    brightness = imread(tmp_path / "residency.png")[:, WIDTH // 2, :3].mean(axis=1)

    assert brightness[HEIGHT // 4] > 0.9
    assert brightness[HEIGHT * 5 // 8] < 0.3


def test_the_kinds_of_cell_are_told_apart_by_brightness_alone() -> None:
    brightness = sorted(_brightness(colour) for colour, _ in CELLS.values())

    assert min(b - a for a, b in pairwise(brightness)) > 0.12


def test_two_outcomes_give_two_pictures(
    tmp_path: Path, outcome: Outcome, paged_shifted: Callable[[float], Outcome]
) -> None:
    draw_losses(outcome).savefig(tmp_path / "one.png")
    draw_losses(paged_shifted(0.5)).savefig(tmp_path / "other.png")

    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_pictures_need_no_window_system() -> None:
    script = "import sys, pagedopt.demo.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_running_mean_has_a_value_for_each_whole_window() -> None:
    assert running_mean([1.0, 2.0, 3.0, 4.0], 2) == [1.5, 2.5, 3.5]
    assert running_mean([1.0, 2.0], 1) == [1.0, 2.0]
