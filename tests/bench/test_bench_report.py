"""Tables: what they say, and that documents hold nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import contest, results, timing
from rich.console import Console

from bench.report import (
    BLOCK,
    contest_head,
    contest_row,
    documents_with_blocks,
    rows_block,
    show_contest,
    show_summary,
    write_blocks,
)
from bench.results_file import load_all

ROOT = Path(__file__).parents[2]
DOCUMENTS = documents_with_blocks(ROOT)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_table_in_a_document_is_made_from_the_results(path: Path) -> None:
    document = path.read_text()
    assert write_blocks(document, load_all()) == document, "run python -m bench table"


def test_each_table_is_in_one_document() -> None:
    blocks = [match["name"] for path in DOCUMENTS for match in BLOCK.finditer(path.read_text())]

    assert sorted(blocks) == ["bars", "rows", "steps"]


def test_a_block_is_filled_and_the_rest_left_alone() -> None:
    document = "before\n<!-- bench: bars -->\nstale\n<!-- bench: end -->\nafter\n"
    made = write_blocks(document, [results()])
    assert made.startswith("before\n<!-- bench: bars -->\n")
    assert made.endswith("<!-- bench: end -->\nafter\n")
    assert "stale" not in made
    assert "| 8-bit, float32, 50M: time / torch fused 32-bit | ≤ 1 | 0.65 | 0.375 | 0.312 .. 0.438 | 2 | aim |" in made
    assert write_blocks(made, [results()]) == made


def test_the_short_table_has_steps_alone_and_what_was_measured() -> None:
    made = write_blocks("<!-- bench: steps -->\n<!-- bench: end -->\n", [results(), results(kind="checkpoint")])
    assert "| what must be reached | bar | measured |  |" in made
    assert "| 8-bit, float32, 50M: time / torch fused 32-bit | ≤ 1 | 0.375 | aim |" in made
    assert "not measured" not in made
    assert "save" not in made


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no block 'nonsense'; known are bars, rows, steps"):
        write_blocks("<!-- bench: nonsense -->\n<!-- bench: end -->", [])


def test_a_table_names_machine_commit_versions_and_command() -> None:
    made = rows_block([results()])
    for named in ("A CPU, 2 threads on 2 cores", "0123456789ab", "torch 2.13.0", "2026-01-01", "`python -m bench cpu`"):
        assert named in made


def test_what_was_not_timed_stands_below_the_table() -> None:
    made = rows_block([results()])
    assert "- torchao 8-bit: could not run: no compiler" in made
    assert "Not timed: flashoptim 8-bit: does not run on cpu." in made


def test_a_row_has_seconds_rates_and_ratios() -> None:
    found = results().contests[0]
    cells = dict(zip(contest_head(found), contest_row(found, found.timings[1]), strict=True))
    assert cells == {
        "": "pagedopt 8-bit (a version; few)",
        "step": "100 ms",
        "s / 10⁹ values": "1e+05",
        "GB/s": "0.00016",
        "of memory sum": "2",
        "time / torch fused": "0.375",
        "quartiles": "0.312 .. 0.438",
        "n": "2",
    }


def test_without_a_ceiling_there_are_no_rates() -> None:
    loop = contest("train", timing("resident", 1.0, nbytes=0.0), ceiling="", baseline="resident", numel=0)
    assert contest_head(loop) == ("", "step", "time / resident", "quartiles", "n")
    assert contest_row(loop, loop.timings[0])[1:3] == ("1 s", "1")


def test_a_quick_run_is_never_judged() -> None:
    console = Console(record=True, width=200, quiet=False, file=None)
    with console.capture() as shown:
        show_summary(results(command="python -m bench cpu --quick"), console)
    assert "its numbers mean nothing" in shown.get()
    assert "must be reached" not in shown.get()


def test_the_terminal_shows_rows_refusals_and_facts() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        show_contest(results().contests[0], console)
        show_summary(results(), console)
    for expected in ("pagedopt 8-bit", "no compiler", "1 MiB", "0.00", "aim", "not measured"):
        assert expected in shown.get()
