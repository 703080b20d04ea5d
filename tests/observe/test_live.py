"""The live line: on a terminal while it runs, elsewhere once at the end, and true to the statistics."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from watched import small_optimizer

import pagedopt
from child import run_python
from pagedopt.observe import live as live_module
from pagedopt.units import format_bytes


class Terminal(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _every_step_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")


def test_the_line_says_what_the_statistics_say(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    optimizer.step()
    optimizer.reset_paging_stats()
    with pagedopt.live(optimizer, file=io.StringIO()) as shown:
        for _ in range(4):
            optimizer.step()
        line = shown.line()

    stats, memory = optimizer.paging_stats(), optimizer.memory_stats()
    moved = stats.bytes_read["disk"] + stats.bytes_written["disk"]
    parts = line.split(" · ")
    assert parts[0] == "pagedopt"
    assert parts[1] == "budget 384 KiB"
    assert parts[2] == f"resident {memory.resident_pages} of {memory.pages} pages"
    assert parts[3] == f"{format_bytes(moved / 4)} a step"
    assert parts[4].startswith(f"waited {stats.stalled_seconds / 4 * 1e3:.3g} ms a step (")
    assert parts[5] == f"SSD {format_bytes(stats.bytes_written['disk'])} written"


def test_a_narrow_line_is_whole_and_says_what_paging_costs(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    with pagedopt.live(optimizer, file=io.StringIO()) as shown:
        optimizer.step()
        lines = {width: shown.line(width) for width in range(20, 160)}
        full, shortest = shown.line(), f"SSD {format_bytes(optimizer.paging_stats().bytes_written['disk'])}"

    assert all(len(line) <= width for width, line in lines.items())
    assert all(line.endswith(shortest) for line in lines.values() if line != full)
    assert "waited " in lines[60]
    assert lines[90].startswith("pagedopt · 384 KiB · ")
    assert lines[159] == full


def test_a_terminal_of_eighty_columns_shows_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    optimizer, terminal = small_optimizer(tmp_path), Terminal()
    with pagedopt.live(optimizer, file=terminal):
        optimizer.step()

    assert "waited " in terminal.getvalue()
    assert "…" not in terminal.getvalue()


def test_a_reset_of_the_statistics_does_not_reset_what_was_written(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    written = 0
    with pagedopt.live(optimizer, file=io.StringIO()) as shown:
        for _ in range(3):
            optimizer.step()
            written += optimizer.paging_stats().bytes_written["disk"]
            optimizer.reset_paging_stats()

    assert shown.line().endswith(f"SSD {format_bytes(written)} written")


def test_a_terminal_is_written_to_at_each_step(tmp_path: Path) -> None:
    optimizer, terminal = small_optimizer(tmp_path), Terminal()
    sizes = []

    with pagedopt.live(optimizer, file=terminal):
        for _ in range(3):
            optimizer.step()
            sizes.append(len(terminal.getvalue()))

    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert "budget 384 KiB" in terminal.getvalue()


def test_where_there_is_no_terminal_the_line_comes_once_at_the_end(tmp_path: Path) -> None:
    optimizer, file = small_optimizer(tmp_path), io.StringIO()

    with pagedopt.live(optimizer, file=file) as shown:
        for _ in range(3):
            optimizer.step()
        assert file.getvalue() == ""

    printed, asked = (re.sub(r"\(.*%\)", "", line) for line in (file.getvalue(), shown.line() + "\n"))
    assert printed == asked, "but for the share of the time, which goes on"


def test_nothing_is_printed_where_nothing_was_asked_for_or_done(tmp_path: Path) -> None:
    optimizer, file = small_optimizer(tmp_path), io.StringIO()

    with pagedopt.live(optimizer, file=file):
        pass
    with pagedopt.live(optimizer, file=file, final=False):
        optimizer.step()

    assert file.getvalue() == ""


def test_afterwards_a_step_tells_nobody(tmp_path: Path) -> None:
    optimizer, file = small_optimizer(tmp_path), io.StringIO()
    with pytest.raises(ZeroDivisionError), pagedopt.live(optimizer, file=file):
        raise ZeroDivisionError

    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert file.getvalue() == ""


def test_what_is_no_optimizer_of_pagedopt_is_refused() -> None:
    with pytest.raises(TypeError, match="SGD"):
        pagedopt.live(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]))


def test_neither_rich_nor_a_watcher_is_imported_before_it_is_needed() -> None:
    script = """
import sys
import pagedopt
late = ("rich", "matplotlib", "pagedopt.observe", "pagedopt.pictures")
sys.exit(str([name for name in late if name in sys.modules]) if any(name in sys.modules for name in late) else 0)
"""
    done = run_python(script)

    assert done.returncode == 0, done.stderr
