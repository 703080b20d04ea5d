"""Each thing that can be missing or broken is told, with what it costs and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pagedopt.doctor import Check, Options, diagnose, examination, hardware, software, speed, spilling
from pagedopt.doctor.text import as_json, as_table
from pagedopt.kernels.select import Backend, _kernel_for

ROOT = Path(__file__).parents[2]


def only(checks: Iterable[Check]) -> Check:
    (check,) = checks
    return check


def named(checks: Iterable[Check], name: str) -> Check:
    return only(check for check in checks if check.name == name)


# all of it


def test_every_thing_is_examined_once_and_says_something(tmp_path: Path) -> None:
    checks = diagnose(Options(tmp_path, with_rates=False))
    names = [check.name for check in checks]

    assert len(set(names)) == len(names)
    for name in ("python", "torch", "native kernels", "triton", "accelerator", "pinned memory", "threads", "RAM"):
        assert name in names
    for name in ("spill folder", "direct I/O", "spill room", *software.PACKAGES):
        assert name in names
    assert all(check.value for check in checks)


def test_whatever_is_not_ok_says_what_that_costs(tmp_path: Path) -> None:
    checks = [check for check in diagnose(Options(tmp_path, with_rates=False)) if check.state != "ok"]

    assert all(check.cost for check in checks)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure_host", lambda: 1e9)
    diagnose(Options(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_an_examination_that_fails_is_a_finding_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode() -> Iterable[Check]:
        raise RuntimeError("the thermometer broke\nin two")

    monkeypatch.setattr(software, "python", explode)
    checks = diagnose(Options(tmp_path, with_rates=False))

    assert named(checks, "python").state == "broken"
    assert named(checks, "python").value == "could not be examined: RuntimeError: the thermometer broke"
    assert named(checks, "torch").state == "ok"


def test_json_and_table_tell_the_same() -> None:
    checks = [Check("a", "ok", "1"), Check("b", "broken", "2", "pain", "rest")]
    data = json.loads(as_json(checks))

    assert data["is_broken"] is True
    assert data["checks"][1] == {"name": "b", "state": "broken", "value": "2", "cost": "pain", "remedy": "rest"}
    assert as_table(checks).row_count == 2


# software


def test_an_old_python_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    assert only(software.python()).state == "broken"


def test_an_old_torch_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    assert only(software.torch_itself()).state == "broken"


def backend_instead(monkeypatch: pytest.MonkeyPatch, name: str, *, available: bool, reason: str) -> None:
    monkeypatch.setattr(software, "backends", lambda: (Backend(name, available, reason, "cuda"),))


def test_kernels_that_were_not_built_are_missing_and_those_that_do_not_load_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend_instead(monkeypatch, "native", available=False, reason="undefined symbol")
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: object())
    broken = only(software.native_kernels())
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None)
    missing = only(software.native_kernels())

    assert (broken.state, broken.value) == ("broken", "undefined symbol")
    assert missing.state == "missing"
    assert "C++ compiler" in missing.remedy
    assert "many times slower" in missing.cost


def test_triton_costs_something_only_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_instead(monkeypatch, "triton", available=False, reason="triton is not installed")
    needed, idle = only(software.triton(has_accelerator=True)), only(software.triton(has_accelerator=False))

    assert "many times slower" in needed.cost
    assert "install" in needed.remedy
    assert "nothing on this machine" in idle.cost
    assert not idle.remedy


def test_a_backend_that_the_environment_asks_for_in_vain_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDOPT_BACKEND", "abacus")
    _kernel_for.cache_clear()
    found = only(software.backend_in_use(torch.device("cpu")))

    assert found.state == "broken"
    assert "PAGEDOPT_BACKEND must be one of" in found.value


def test_packages_are_told_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"transformers": "5.20.1", "peft": "0.9.0", "trl": "1.99"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(software.metadata, "version", version)
    checks = list(software.packages())

    assert named(checks, "transformers").state == named(checks, "trl").state == "ok"
    assert named(checks, "peft").state == "missing"
    assert 'pip install "peft>=0.21"' in named(checks, "peft").remedy
    assert named(checks, "datasets").value == "not installed"
    assert 'pip install "pagedopt[hf]"' in named(checks, "datasets").remedy


def test_the_versions_told_are_those_asked_for_and_tested() -> None:
    """`oldest` is what our extras ask for, `newest` what the tests are pinned to."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = (ROOT / "requirements" / "pins.txt").read_text().splitlines()

    for name, tested in software.PACKAGES.items():
        assert any(pin.split(" ;")[0] == f"{name}=={tested.newest}" for pin in pins), name
        if tested.extra:
            assert f"{name}>={tested.oldest}" in extras[tested.extra]


# hardware


def test_a_driver_that_torch_cannot_use_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", tmp_path / "version")
    found = only(hardware.accelerator_found(None))

    assert found.state == "broken"
    assert "NVIDIA driver 550.54.15" in found.value
    assert "build of torch" in found.remedy


def test_no_accelerator_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.setattr(hardware, "AMD_DRIVER", tmp_path / "none")

    assert only(hardware.accelerator_found(None)).state == "missing"


def test_an_accelerator_is_told_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda device: "Abacus 9000")
    monkeypatch.setattr(hardware, "automatic_device_nbytes", lambda device: 3 << 30)
    found = only(hardware.accelerator_found(torch.device("cuda")))

    assert found.state == "ok"
    assert found.value.startswith("Abacus 9000")
    assert "max_gpu_memory would be 3 GiB" in found.value


def test_memory_that_cannot_be_pinned_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("out of pinned memory\nsecond line")

    monkeypatch.setattr(torch, "empty", refuse)
    found = only(hardware.pinned_memory(torch.device("cuda")))

    assert found.state == "broken"
    assert found.value.startswith("out of pinned memory; ulimit -l is ")


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    found = only(hardware.threads())

    assert found.state == "missing"
    assert "OMP_NUM_THREADS=2" in found.remedy


def test_no_ram_to_spare_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "automatic_host_nbytes", lambda: 0)
    assert only(hardware.ram()).state == "missing"


# spilling


def mounts(monkeypatch: pytest.MonkeyPatch, *found: tuple[Path | str, str]) -> None:
    import psutil

    listed = [SimpleNamespace(mountpoint=str(point), fstype=kind) for point, kind in found]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: listed)


def test_the_innermost_mount_is_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(monkeypatch, ("/", "overlay"), (tmp_path, "tmpfs"), (tmp_path.parent, "ext4"), (f"{tmp_path}x", "xfs"))

    assert spilling.file_system_of(tmp_path) == "tmpfs"
    assert spilling.file_system_of(tmp_path.parent) == "ext4"
    assert spilling.file_system_of(Path("/")) == "overlay"


@pytest.mark.parametrize(
    ("kind", "state", "cost"),
    [("tmpfs", "missing", "this is RAM"), ("nfs4", "missing", "over the network"), ("ext4", "ok", "")],
)
def test_a_spill_folder_that_is_no_disk_is_told(
    kind: str, state: str, cost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(monkeypatch, ("/", kind))
    found = named(spilling.folder(tmp_path), "spill folder")

    assert found.state == state
    assert cost in found.cost


def test_a_spill_folder_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    found = only(spilling.folder(tmp_path / "gone"))

    assert found.state == "broken"
    assert "spill_dir" in found.remedy


def test_a_disk_without_direct_transfers_or_with_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(spilling.SpillFile):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder, direct=False)
            self.is_nameless = False

    monkeypatch.setattr(spilling, "SpillFile", Plain)
    checks = list(spilling.folder(tmp_path))

    assert "page cache" in named(checks, "direct I/O").cost
    assert named(checks, "nameless file").state == "missing"


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    found = named(spilling.folder(tmp_path), "spill room")

    assert (found.state, found.value) == ("missing", "1 GiB free")


# speed


@pytest.mark.parametrize(("both", "state"), [(0.1e9, "missing"), (3e9, "ok")])
def test_a_slow_disk_is_told(both: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure_disk", lambda setup: {"disk_read": 1e9, "disk_write": 1e9, "disk_both": both})
    monkeypatch.setattr(speed, "measure_host", lambda: 7e9)
    checks = list(speed.rates(torch.device("cpu"), tmp_path, lambda what: None))

    assert named(checks, "disk rate").state == state
    assert named(checks, "RAM rate").value == "7 GB/s copied"


def test_a_disk_that_cannot_be_measured_is_broken(tmp_path: Path) -> None:
    checks = list(speed.rates(torch.device("cpu"), tmp_path / "gone", lambda what: None))

    assert named(checks, "disk rate").state == "broken"


def test_rates_are_measured_only_if_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("nothing was to be measured")

    monkeypatch.setattr(examination.speed, "rates", refuse)
    assert diagnose(Options(tmp_path, with_rates=False))
