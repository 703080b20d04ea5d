"""A long save or load draws a bar for whoever looks at a terminal, and nothing for anyone else."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pagedopt
from oracle import twins
from pagedopt import PagedAdamW
from pagedopt.checkpoint import progress
from states import optimizer_of, params_of
from strategies import STATE_KINDS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def save_and_load(folder: Path, **options: Any) -> None:
    optimizer = optimizer_of("8")
    pagedopt.save(optimizer, folder, **options)
    pagedopt.load(PagedAdamW(twins(params_of(optimizer), 1)[0], **STATE_KINDS["8"]), folder, **options)


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what draws on a stderr of some kind, and returns what was drawn."""

    def draw(stderr: io.StringIO, **options: Any) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "200")
            save_and_load(tmp_path, **options)
        return stderr.getvalue()

    return draw


def test_a_terminal_sees_what_takes_long(drawn: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(Terminal()) == "", "this is over before anyone looks"
    monkeypatch.setattr(progress, "LONG_NBYTES", 1000)
    shown = drawn(Terminal())
    assert "saving to" in shown
    assert "loading" in shown
    assert drawn(Terminal(), show_progress=False) == ""


def test_what_is_no_terminal_sees_nothing_unless_asked(
    drawn: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LONG_NBYTES", 1000)
    assert drawn(io.StringIO()) == ""
    assert "saving to" in drawn(io.StringIO(), show_progress=True)


def test_a_bar_ends_at_the_bytes_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    totals: list[int] = []

    class Watched:
        def __init__(self, what: str, nbytes: int, *, is_shown: bool | None = None) -> None:
            totals.append(nbytes)

        def __enter__(self) -> Callable[[int], None]:
            return told.append

        def __exit__(self, *exception: object) -> None:
            totals.append(sum(told))
            told.clear()

    for module in ("saving", "writing"):
        monkeypatch.setattr(f"pagedopt.checkpoint.{module}.progress", Watched)
    save_and_load(tmp_path)
    (to_save, saved, to_load, loaded) = totals
    assert to_save == saved == to_load == loaded > 0
    pagedopt.load(optimizer_of("8"), tmp_path)
    assert totals[4:] == [2 * to_load] * 2, "what replaces state is read twice"
