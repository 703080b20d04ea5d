"""From files to pictures: there, of the right size, true to the file, and readable in black and white."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

import pagedopt
from pagedopt.pictures import plot as plot_module
from pagedopt.pictures.bytes import PLACES, draw_bytes
from pagedopt.pictures.pages import CELLS
from pagedopt.pictures.plot import UnreadableError
from pagedopt.pictures.ratios import draw_limits, draw_ratios
from pagedopt.pictures.residency import Cell
from pagedopt.pictures.results_read import read_results
from pagedopt.pictures.style import DARK, DPI, LIGHT, MIDDLE, PALE, SIZE, Shade
from pagedopt.pictures.times import PARTS, draw_times
from pagedopt.pictures.trace_read import MOST_PAGES, StepTime, read_trace

WIDTH, HEIGHT = (round(inches * DPI) for inches in SIZE)

PAGE = 64 << 10


def _brightness(colour: str) -> float:
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the trace of six steps of a training of which half fits."""
    import torch

    folder = tmp_path_factory.mktemp("trace")
    param = torch.nn.Parameter(torch.zeros(12 * 32_000))
    param.grad = torch.ones_like(param)
    optimizer = pagedopt.PagedAdamW8bit([param], page_size=PAGE, max_host_memory=6 * PAGE, spill_dir=folder)
    with optimizer, pagedopt.trace(optimizer, folder / "trace.json"):
        for _ in range(6):
            optimizer.step()
    return folder / "trace.json"


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.9, "high": median * 1.2, "least": 0.0, "most": 99.0, "n": 5}


RESULTS: dict[str, Any] = {
    "schema": 1,
    "date": "2026-01-01",
    "commit": "abc",
    "command": "python -m bench cpu",
    "machine": {"name": "a-machine", "cpu": "A machine", "threads": 2, "accelerator": ""},
    "bars": [
        {"text": "time / torch", "bar": 2.0, "aim": 1.0, "at_least": False, "measured": _spread(1.5)},
        {"text": "theirs / ours", "bar": 10.0, "aim": 20.0, "at_least": True, "measured": _spread(40.0)},
        {"text": "must be nothing", "bar": 0.0, "aim": 0.0, "at_least": False, "measured": _spread(0.0)},
        {"text": "not run", "bar": 10.0, "aim": 20.0, "at_least": True, "measured": None},
    ],
    "contests": [
        {
            "title": "one tensor",
            "baseline": "torch fused",
            "rows": [
                {"name": "torch fused", "time_over_baseline": _spread(1.0)},
                {"name": "pagedopt 8-bit", "time_over_baseline": _spread(0.5)},
                {"name": "theirs", "time_over_baseline": _spread(20.0)},
                {"name": "memory sum", "time_over_baseline": _spread(0.3)},
            ],
        },
        {
            "title": "nothing but probes",
            "baseline": "memory sum",
            "rows": [{"name": "memory sum", "time_over_baseline": _spread(1.0)}],
        },
    ],
}


def _results_file(folder: Path, content: Mapping[str, Any] = RESULTS) -> Path:
    path = folder / "a-machine.json"
    path.write_text(json.dumps(content))
    return path


def test_a_trace_becomes_three_pictures_in_two_formats(trace: Path, tmp_path: Path) -> None:
    written = pagedopt.plot(trace, out=tmp_path / "new")

    names = [f"trace-{what}.{ending}" for what in ("pages", "bytes", "time") for ending in ("png", "svg")]
    assert [path.name for path in written] == names
    for path in written:
        if path.suffix == ".png":
            assert imread(path).shape[:2] == (HEIGHT, WIDTH)
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
            assert path.stat().st_size < 300_000


def test_the_same_file_gives_the_same_picture_to_the_byte(trace: Path, tmp_path: Path) -> None:
    first, second = (
        pagedopt.plot(trace, _results_file(tmp_path), out=tmp_path / name, formats=["svg"]) for name in "ab"
    )

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pictures_lie_beside_their_source_unless_told_otherwise(tmp_path: Path) -> None:
    written = pagedopt.plot(_results_file(tmp_path), formats=["svg"])

    assert written == [tmp_path / "a-machine-ratios.svg", tmp_path / "a-machine-bars.svg"]


def test_a_trace_read_back_says_what_happened(trace: Path) -> None:
    content = read_trace(json.loads(trace.read_text()))

    (device,) = content.devices
    assert (device.device, device.page_nbytes, device.budget_nbytes) == ("cpu", PAGE, 6 * PAGE)
    assert [step.number for step in content.steps] == [1, 2, 3, 4, 5, 6]
    assert all(step.update > 0 and step.update + step.wait <= step.seconds for step in content.steps)
    assert device.pages is not None
    assert device.first_step == 3
    pages = len(device.pages.columns[0])
    assert device.pages.step_ends == [pages, 2 * pages, 3 * pages, 4 * pages]
    away = [column.count(Cell.AWAY) for column in device.pages.columns]
    assert 0 < min(away) <= max(away) < pages
    assert {cell for column in device.pages.columns for cell in column} == set(Cell)


def test_of_many_pages_some_are_shown(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagedopt.pictures.trace_read.MOST_PAGES", 4)
    assert MOST_PAGES > 100

    (device,) = read_trace(json.loads(trace.read_text())).devices

    assert device.pages is not None
    assert len(device.pages.columns[0]) <= 4
    assert device.sampled >= 3


@pytest.mark.parametrize(
    "shades",
    [
        [shade for shade, _ in PLACES.values()],
        [shade for _, shade, _ in PARTS],
        [Shade(colour) for colour, _ in CELLS.values()],
        [DARK, LIGHT],
    ],
    ids=["bytes", "time", "pages", "ratios"],
)
def test_neighbouring_areas_differ_without_colour(shades: list[Shade]) -> None:
    for one, other in pairwise(shades):
        assert abs(_brightness(one.colour) - _brightness(other.colour)) > 0.12
    for shade in shades:
        assert shades.count(shade) == 1


def test_the_shades_are_told_apart_by_brightness_alone() -> None:
    brightness = sorted(_brightness(shade.colour) for shade in (DARK, MIDDLE, LIGHT, PALE))

    assert min(b - a for a, b in pairwise(brightness)) > 0.12


def test_a_picture_in_grey_still_shows_every_part_of_the_time(tmp_path: Path) -> None:
    steps = [StepTime(i, i, 3.0, 1.0, 1.0) for i in range(4)]
    figure = draw_times(steps)
    figure.savefig(tmp_path / "time.png")
    (axes,) = figure.axes
    grey = imread(tmp_path / "time.png")[..., :3] @ [0.299, 0.587, 0.114]

    levels = []
    for part in range(3):  # the middle of each part of the second bar
        x, y = axes.transData.transform((1.0, 1000.0 * (part + 0.5)))
        patch = grey[HEIGHT - int(y) - 20 : HEIGHT - int(y) + 20, int(x) - 20 : int(x) + 20]
        levels.append(float(patch.mean()))

    assert min(abs(a - b) for a, b in pairwise(levels)) > 0.1


def test_lines_differ_in_style_and_mark(trace: Path) -> None:
    (device,) = read_trace(json.loads(trace.read_text())).devices
    moved = draw_bytes(device).axes[1]

    assert len({(line.get_linestyle(), line.get_marker()) for line in moved.lines}) == 2


def test_the_bytes_picture_shows_the_budget_and_no_more_in_frames(trace: Path) -> None:
    (device,) = read_trace(json.loads(trace.read_text())).devices
    places = draw_bytes(device).axes[0]

    assert 6 * PAGE in [line.get_ydata()[0] for line in places.lines]  # type: ignore[index]
    assert max(sample.values["frames"] for sample in device.state) == 6 * PAGE


def test_many_steps_become_few_bars_of_their_means() -> None:
    steps = [StepTime(i, i, 3.0, 1.0, 1.0) for i in range(1, 101)]
    (axes,) = draw_times(steps).axes

    assert len(axes.patches) == 3 * 34
    assert "mean of 3 steps" in axes.get_title("left")


def _texts(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_ratios_are_drawn_for_candidates_and_not_for_probes(tmp_path: Path) -> None:
    figure = draw_ratios(read_results(RESULTS))
    (axes,) = figure.axes

    assert _texts(axes) == ["torch fused", "pagedopt 8-bit", "theirs"]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert ends == pytest.approx([1.0, 0.5, 20.0])
    assert axes.get_xscale() == "log"
    assert any(list(line.get_xdata()) == [1.0, 1.0] for line in axes.lines)  # type: ignore[arg-type]


def test_our_bars_differ_from_theirs_without_colour() -> None:
    (axes,) = draw_ratios(read_results(RESULTS)).axes
    theirs, ours, _ = axes.patches

    assert theirs.get_hatch() != ours.get_hatch()
    assert theirs.get_facecolor() != ours.get_facecolor()


def test_what_must_be_reached_is_turned_so_that_over_1_is_missed() -> None:
    """What must be zero is a share of nothing, and is left to the tables."""
    figure: Figure = draw_limits(read_results(RESULTS))
    (axes,) = figure.axes

    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert ends == pytest.approx([0.75, 0.25])
    assert _texts(axes) == ["time / torch ≤ 2", "theirs / ours ≥ 10"]


def test_a_trace_that_was_cut_off_is_drawn_as_far_as_it_goes(trace: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.json"
    text = trace.read_text()
    cut.write_text(text[: len(text) * 2 // 3])

    assert len(pagedopt.plot(cut, formats=["svg"])) == 3


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "not JSON", '[{"ph": "X"}]', '{"schema": 7}', '{"schema": 1}'])
def test_what_is_neither_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)

    with pytest.raises(UnreadableError, match=r"some\.json"):
        pagedopt.plot(path)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plot_module, "find_spec", lambda _: None)

    with pytest.raises(ModuleNotFoundError, match=r"pagedopt\[plot\]"):
        pagedopt.plot(_results_file(tmp_path))


def test_pictures_need_no_window_system() -> None:
    script = "import sys, pagedopt.pictures.ratios; sys.exit('matplotlib.pyplot' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_sources_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    sources = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        sources.append(_results_file(folder))

    with pytest.raises(ValueError, match="has the name of another source"):
        pagedopt.plot(*sources, out=tmp_path / "pictures", formats=["svg"])
