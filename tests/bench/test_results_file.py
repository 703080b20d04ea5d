"""Results survive their file, and every number in a file follows from its samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import results, timing

from bench.results_file import FOLDER, SCHEMA, from_json, gb_per_second, load, load_all, save, to_json

FILES = sorted(FOLDER.glob("*.json"))


def test_results_read_back_as_written(tmp_path: Path) -> None:
    written = results()
    path = save(written, tmp_path)
    assert path.name == "a-cpu-2-cores.json"
    assert load(path) == written
    assert load_all(tmp_path) == [written]


def test_what_a_machine_does_with_checkpoints_has_a_file_of_its_own(tmp_path: Path) -> None:
    written = [results(kind=kind) for kind in ("cpu", "checkpoint")]
    assert [save(one, tmp_path).name for one in written] == ["a-cpu-2-cores.json", "a-cpu-2-cores-checkpoint.json"]
    assert load_all(tmp_path) == written


def test_a_file_tells_seconds_rates_and_ratios_of_every_row() -> None:
    row = to_json(results())["contests"][0]["rows"][1]
    assert row["seconds"] == 0.1
    assert row["n"] == 2
    assert row["gb_per_second"] == pytest.approx(16_000 / 0.1 / 1e9)
    assert row["time_over_baseline"]["median"] == pytest.approx((0.1 / 0.2 + 0.1 / 0.4) / 2)
    assert row["rate_over_ceiling"]["most"] == pytest.approx(16 / 12 * 2)
    assert row["verdict"] == {"error": 0.01, "limit": 0.03, "tolerance": "8-bit codes"}


def test_a_file_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match=f"schema 99, this bench reads {SCHEMA}; run it again"):
        from_json({**to_json(results()), "schema": 99})


def test_a_step_that_need_not_move_has_no_share() -> None:
    still = timing("paged 100 %", 1.0, nbytes=0.0)
    contest = results().contests[0]
    moved = type(contest)(contest.case, contest.title, 1, "memory sum", "memory sum", (*contest.timings, still), (), {})
    assert moved.share("paged 100 %") is None
    assert gb_per_second(still) == 0.0


@pytest.mark.skipif(not FILES, reason="no results are kept")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kept_file_is_what_its_samples_say(path: Path) -> None:
    content = json.loads(path.read_text())
    kept = from_json(content)
    assert to_json(kept) == content
    assert path.stem == kept.machine.name + ("-checkpoint" if kept.kind == "checkpoint" else "")
    assert not kept.is_quick
    assert not kept.commit.endswith("+"), "measured with uncommitted changes"
