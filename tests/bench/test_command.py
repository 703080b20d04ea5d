"""`python -m bench`: every case walked through, in a process of its own as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import cases, checkpoint, gpu_cases, transient
from bench.__main__ import main
from bench.results_file import FOLDER, load

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}  # what peers warn of is not ours
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_quick_run_on_a_cpu_walks_through_every_case(tmp_path: Path) -> None:
    done = bench("cpu", "--quick", "--out", str(tmp_path), "--spill-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    found = load(path)
    assert {contest.case for contest in found.contests} == set(cases.CASES) - {"transient"}
    for contest in found.contests:
        assert not contest.refusals
        assert all(len(timing.samples) == 2 and min(timing.samples) > 0 for timing in contest.timings)
    assert [taken.name for taken in found.transients] == (["pagedopt 8-bit"] if not transient.can_measure() else [])
    assert found.command == "python -m bench cpu --quick"
    assert found.machine.threads == 1
    paged = found.contest("paged")
    assert paged is not None
    assert paged.facts["paged 25 %: bytes a step moved"] >= paged.facts["paged 25 %: bytes a step must move"] > 0


def test_a_rehearsal_of_the_gpu_walks_through_every_case(tmp_path: Path) -> None:
    done = bench("gpu", "--quick", "--device", "cpu", "--out", str(tmp_path), "--spill-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = load(tmp_path / "rehearsal-on-a-cpu.json")
    assert {contest.case for contest in found.contests} == set(gpu_cases.CASES)
    refused = {refusal.name for contest in found.contests for refusal in contest.refusals}
    assert refused == {gpu_cases.BITSANDBYTES_PAGED}
    training = found.contest("train")
    assert training is not None
    assert [timing.name for timing in training.timings] == ["resident", "paged 0 %", "torch fused"]


def test_a_case_that_breaks_leaves_the_others_and_what_was_found_is_kept_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[set[str]] = []

    def breaks(*_: object) -> object:
        (so_far,) = tmp_path.glob("*.so-far")
        kept.append({contest.case for contest in load(so_far).contests})
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(gpu_cases, "copies_contest", breaks)
    only = ["--only", "memory", "--only", "copies", "--only", "many-float32"]
    assert main(["gpu", "--quick", "--device", "cpu", "--out", str(tmp_path), *only]) == 1
    assert kept == [{"memory"}]
    (path,) = tmp_path.iterdir()
    assert {contest.case for contest in load(path).contests} == {"memory", "many-float32"}
    assert "case copies" in {refusal.name for refusal in load(path).absent}
    assert "the device is gone" in capsys.readouterr().err


def test_a_quick_run_of_checkpoints_walks_through_every_case(tmp_path: Path) -> None:
    done = bench("checkpoint", "--quick", "--out", str(tmp_path), "--spill-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-checkpoint.json")
    found = load(path)
    assert {contest.case for contest in found.contests} == set(checkpoint.CASES)
    for contest in found.contests:
        assert not contest.refusals
        assert [timing.name for timing in contest.timings][1:] == [contest.ceiling]
        assert contest.share(contest.timings[0].name) is not None


def test_a_quick_run_keeps_no_results_unless_told_where(capsys: pytest.CaptureFixture[str]) -> None:
    kept = set(FOLDER.glob("*"))
    assert main(["cpu", "--quick", "--only", "memory"]) == 0
    assert set(FOLDER.glob("*")) == kept
    assert "memory sum" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_gpu_bench_ends_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 2
    assert "finds no cuda device here" in capsys.readouterr().err


def test_an_unknown_case_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpu", "--only", "nonsense"]) == 2
    assert "no case 'nonsense'; known are memory, one-float32" in capsys.readouterr().err


def test_tables_can_be_checked_without_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--check"]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.skipif(transient.can_measure() is not None, reason=str(transient.can_measure()))
@pytest.mark.parametrize(("name", "least", "most"), [("torch fused", 0.0, 0.1), ("torch foreach", 3.9, 12.1)])
def test_memory_that_a_step_takes_and_gives_back_is_seen(name: str, least: float, most: float) -> None:
    taken = transient.measure(name, "float32", (4_000_000, 1_000_000))  # an earlier, higher peak must not count
    assert least <= round(abs(taken.nbytes_per_value), 1) <= most, taken


@pytest.mark.skipif(transient.can_measure() is not None, reason=str(transient.can_measure()))
def test_a_step_that_fails_is_an_error_and_not_zero_bytes() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        transient.measure("nobody", "float32", (1, 2))
