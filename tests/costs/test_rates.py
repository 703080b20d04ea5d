"""Rates: kept for the machine they are of, measured when missing, and refused when they make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pagedopt.costs import measurement
from pagedopt.costs.measurement import Setup, describe_machine, measure, measure_disk, rates_here
from pagedopt.costs.rates import Rates, RatesError, cache_file, cached_rates, keep_rates, read_rates
from pagedopt.errors import SpillError

GOOD: dict[str, Any] = {
    "pagedopt_rates": 1,
    "machine": {"processor": "abacus"},
    "bytes_per_second": {"host": 1e10, "disk_read": 2e9, "disk_write": 1e9, "disk_both": 2.5e9},
    "values_per_second": {"blockwise8/float32": 5e8},
    "seconds": {"page": 2e-5},
    "overlap": 0.25,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(torch.device("cpu"), tmp_path, 64 << 10, 2)


def write(folder: Path, content: object) -> Path:
    path = folder / "rates.json"
    path.write_text(json.dumps(content))
    return path


def test_a_file_says_what_was_measured(tmp_path: Path) -> None:
    rates = read_rates(write(tmp_path, GOOD))

    assert rates.to_dict() == GOOD
    assert rates.of_bytes("host") == 1e10
    assert rates.of_values("blockwise8", "float32") == 5e8
    assert (rates.of_seconds("page"), rates.of_seconds("parameter")) == (2e-5, 0.0)


def test_what_a_file_does_not_say_of_the_overlap_is_not_known(tmp_path: Path) -> None:
    content = {key: value for key, value in GOOD.items() if key != "overlap"}
    rates = read_rates(write(tmp_path, content))

    assert rates.overlap is None
    assert rates.to_dict() == content
    assert (rates | read_rates(write(tmp_path, GOOD))).overlap == 0.25
    assert (read_rates(write(tmp_path, GOOD)) | rates).overlap == 0.25


def test_a_rate_that_is_missing_is_named(tmp_path: Path) -> None:
    rates = read_rates(write(tmp_path, GOOD))
    with pytest.raises(RatesError, match="have no 'up' in 'bytes_per_second'"):
        rates.of_bytes("up")
    with pytest.raises(RatesError, match="have no 'float32/bfloat16'"):
        rates.of_values("float32", "bfloat16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pagedopt_rates": 2}, "no rates file of version 1"),
        ({"bytes_per_second": []}, "'bytes_per_second' must be an object"),
        ({"bytes_per_second": {"disc": 1}}, "unknown rate 'disc'.*known are host, disk_read"),
        ({"bytes_per_second": {"host": 0}}, "positive number as 'host'.*it has 0"),
        ({"bytes_per_second": {"host": True}}, "it has True"),
        ({"values_per_second": {"x": "fast"}}, "it has 'fast'"),
        ({"seconds": {"page": float("nan")}}, "it has nan"),
        ({"overlap": 1.5}, "a number from 0 to 1 as 'overlap', it has 1.5"),
        ({"overlap": True}, "it has True"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RatesError, match=message):
        read_rates(write(tmp_path, {**GOOD, **change}))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RatesError, match="cannot read the rates"):
        read_rates(tmp_path / "missing.json")
    (tmp_path / "x").write_text("fast")
    with pytest.raises(RatesError, match="is no rates file"):
        read_rates(tmp_path / "x")


def test_kept_rates_are_found_by_their_machine_only() -> None:
    rates = Rates({"host": 1.0}, {}, {}, {"processor": "abacus"})
    keep_rates(rates)

    assert cached_rates({"processor": "abacus"}) == rates
    assert cached_rates({"processor": "slide rule"}) is None


def test_a_damaged_cache_counts_as_none() -> None:
    machine = {"processor": "abacus"}
    keep_rates(Rates({"host": 1.0}, {}, {}, machine))
    cache_file(machine).write_text("{")

    assert cached_rates(machine) is None


def test_a_cache_that_cannot_be_written_is_a_warning_and_no_error(cache: Path) -> None:
    cache.write_text("a file in its place")
    with pytest.warns(UserWarning, match="cannot be kept"):
        keep_rates(Rates({}, {}, {}, {"processor": "abacus"}))


def test_all_that_a_prediction_needs_is_measured(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_DISK_PAGES", 64)
    monkeypatch.setattr(measurement, "_UPDATE_NUMEL", {"cpu": 1 << 16})
    monkeypatch.setattr(measurement, "_OVERLAP_NUMEL", 1 << 19)
    kinds = [(state_format, "bfloat16") for state_format in ("float32", "float32_amsgrad", "blockwise8", "tensorwise8")]
    said: list[str] = []

    rates = measure(setup, kinds, said.append)

    assert set(rates.bytes_per_second) == {"host", "disk_read", "disk_write", "disk_both"}
    assert set(rates.values_per_second) == {"/".join(kind) for kind in kinds}
    assert set(rates.seconds) == {"page", "parameter"}
    assert rates.machine == describe_machine(setup)
    assert all(rate > 0 for rate in rates.to_dict()["bytes_per_second"].values())
    assert rates.overlap is not None
    assert 0 <= rates.overlap <= 1
    assert len(said) == 3 + len(kinds)


def test_machines_differ_by_page_folder_and_backend(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    described = describe_machine(setup)
    larger = describe_machine(Setup(setup.device, setup.folder, 128 << 10, 2))
    monkeypatch.setenv("PAGEDOPT_BACKEND", "reference")

    assert described != larger
    assert described["backend"] != describe_machine(setup)["backend"]


def test_only_what_was_not_kept_is_measured(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def instead(_: Setup, kinds: Any, say: Any) -> dict[str, float]:
        kinds = list(kinds)
        measured.extend(map("/".join, kinds))
        return {"/".join(kind): 1.0 for kind in kinds}

    monkeypatch.setattr(measurement, "measure_updates", instead)
    monkeypatch.setattr(measurement, "measure_disk", lambda _: measured.append("disk") or {"disk_read": 1.0})
    monkeypatch.setattr(measurement, "measure_overlap", lambda _: 0.5)
    rates_here(setup, [("float32", "float32")])
    rates_here(setup, [("float32", "float32")])
    assert measured == ["disk", "float32/float32"]

    rates = rates_here(setup, [("float32", "float32"), ("blockwise8", "float32")])
    assert measured == ["disk", "float32/float32", "blockwise8/float32"]
    assert set(rates.values_per_second) == {"float32/float32", "blockwise8/float32"}

    rates_here(setup, [("float32", "float32")], again=True)
    assert measured[3:] == ["disk", "float32/float32"]


def test_the_disk_that_is_measured_is_the_spill_folders(tmp_path: Path) -> None:
    gone = Setup(torch.device("cpu"), tmp_path / "gone", 64 << 10, 2)
    with pytest.raises(SpillError, match="could not make a spill file"):
        measure_disk(gone)


def test_measuring_leaves_no_file_behind(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_DISK_PAGES", 16)
    measure_disk(setup)

    assert list(tmp_path.iterdir()) == []
