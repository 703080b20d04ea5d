"""Who takes part: bytes as counted by hand, and absence said aloud."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from bench import peers
from bench.machine import commit, this_machine, versions

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("entrant", "dtype", "nbytes"),
    [
        (peers.TORCH_FUSED, torch.float32, 4 + 4 + 4 + 4 * 4),
        (peers.TORCH_FUSED, torch.bfloat16, 2 + 2 + 2 + 4 * 2),
        (peers.OURS_32BIT, torch.float32, 28),
        (peers.OURS_32BIT, torch.bfloat16, 6 + 16),
        (peers.OURS_8BIT, torch.float32, 12 + 4 + 4 * 4 / 256),
        (peers.OURS_8BIT, torch.bfloat16, 6 + 4 + 4 * 4 / 256),
        (peers.FLASHOPTIM_8BIT, torch.bfloat16, 6 + 4 + 4 * 2 / 32),
    ],
)
def test_a_step_moves_parameter_and_state_twice_and_the_gradient_once(
    entrant: peers.Entrant, dtype: torch.dtype, nbytes: float
) -> None:
    assert entrant.moved_nbytes(dtype) == nbytes


def test_a_package_that_is_not_there_is_skipped_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "bitsandbytes" else object())
    reason = peers.absence(peers.BITSANDBYTES_8BIT, CPU, quick=True)
    assert reason == "bitsandbytes is not installed; pip install -r requirements/bench.txt"


def test_a_package_that_cannot_be_imported_is_skipped_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(package: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    reason = peers.absence(peers.TORCHAO_8BIT, CPU, quick=False)
    assert reason == "torchao is installed but cannot be imported: OSError: no such library"


def test_who_needs_a_gpu_or_half_a_minute_is_told_so() -> None:
    assert peers.absence(peers.FLASHOPTIM_8BIT, CPU, quick=False) == "does not run on cpu"
    assert peers.absence(peers.TORCHAO_8BIT, CPU, quick=True) == "compiles for half a minute; run without --quick"


def test_everyone_is_present_or_absent_with_a_reason() -> None:
    present, absent = peers.present(CPU, quick=True)
    assert [*sorted(e.name for e in present), *sorted(r.name for r in absent)] != []
    assert {e.name for e in present} | {r.name for r in absent} == {e.name for e in peers.ENTRANTS}
    assert {"torch fused", "torch foreach", "pagedopt 8-bit", "pagedopt 32-bit"} <= {e.name for e in present}
    assert all(refusal.reason for refusal in absent)


def test_the_backend_in_use_is_named_with_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDOPT_BACKEND", "reference")
    assert peers.backend_in_use(CPU) == "reference (any)"


def test_the_machine_is_described() -> None:
    machine = this_machine()
    assert machine.threads >= 1
    assert machine.ram_nbytes > 1 << 28
    assert machine.name == machine.name.lower().replace(" ", "-")
    assert machine.name.endswith(f"-{machine.cores}-cores")
    assert this_machine("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3"


def test_versions_and_commit_are_known() -> None:
    assert {"pagedopt", "torch"} <= set(versions())
    assert commit()
