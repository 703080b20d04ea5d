"""When the Triton backend is chosen, and what is said when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from pagedopt.kernels import select
from pagedopt.kernels.select import Backend, backends, kernel_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def triton_backend() -> Backend:
    (found,) = [backend for backend in backends() if backend.name == "triton"]
    return found


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("PAGEDOPT_BACKEND", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)


@pytest.fixture
def installed(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")


def test_without_triton_the_reason_says_so(monkeypatch):
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    assert triton_backend().reason == "triton is not installed"
    assert not triton_backend().available


def test_without_a_gpu_the_reason_says_so(no_gpu, monkeypatch):
    monkeypatch.setattr(select, "find_spec", lambda name: ModuleSpec(name, None))
    assert "no NVIDIA, AMD or Intel GPU" in triton_backend().reason
    assert not triton_backend().available


def test_a_triton_that_is_too_old_is_refused_with_the_oldest_that_works(gpu, installed, monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.3.1")
    assert triton_backend().reason == "triton 3.3.1 is too old, 3.4 is the oldest that works"
    monkeypatch.setenv("PAGEDOPT_BACKEND", "triton")
    with pytest.raises(ValueError, match=r"PAGEDOPT_BACKEND=triton cannot run here: triton 3\.3\.1 is too old"):
        kernel_for(CUDA)


def test_it_is_chosen_for_parameters_on_a_gpu_and_for_no_others(gpu, installed):
    assert triton_backend().available
    assert triton_backend().target == "cuda"
    assert kernel_for(CUDA).name == "triton"
    assert kernel_for(CPU).name != "triton"
    assert kernel_for(torch.device("mps")).name == "reference"


def test_forced_on_a_gpu_it_refuses_parameters_that_are_not_there(gpu, installed, monkeypatch):
    monkeypatch.setenv("PAGEDOPT_BACKEND", "triton")
    with pytest.raises(ValueError, match=r"PAGEDOPT_BACKEND=triton \(cuda\) cannot update parameters on cpu"):
        kernel_for(CPU)


def test_interpreted_it_runs_on_a_cpu_when_forced_and_never_by_itself(gpu, installed, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernel_for(CPU).name != "triton"
    monkeypatch.setenv("PAGEDOPT_BACKEND", "triton")
    assert kernel_for(CPU).name == "triton"
    with pytest.raises(ValueError, match=r"PAGEDOPT_BACKEND=triton \(interpreter\) cannot update parameters on cuda"):
        kernel_for(CUDA)


def test_triton_is_not_imported_before_a_gpu_needs_it():
    program = (
        "import sys, torch, pagedopt; from pagedopt.kernels.select import backends, kernel_for;"
        "torch.accelerator.is_available = lambda: False;"
        "backends(); kernel_for(torch.device('cpu')); sys.exit('triton' in sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PAGEDOPT_BACKEND")}
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == 0
