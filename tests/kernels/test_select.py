import sys

import pytest
import torch

from pagedopt import kernels
from pagedopt.kernels import select
from pagedopt.kernels.select import backends, kernel_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_forced_backend(monkeypatch):
    monkeypatch.delenv("PAGEDOPT_BACKEND", raising=False)


def test_every_backend_says_whether_it_runs_and_why():
    assert [backend.name for backend in backends()][-1] == "reference"
    assert all(backend.reason and backend.target for backend in backends())
    assert backends()[-1].available


def test_the_reference_runs_when_asked(monkeypatch):
    monkeypatch.setenv("PAGEDOPT_BACKEND", "reference")
    assert kernel_for(CPU).name == "reference"


def test_an_unknown_backend_is_refused_with_what_is_known(monkeypatch):
    monkeypatch.setenv("PAGEDOPT_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"PAGEDOPT_BACKEND must be one of .*reference, got 'fast'"):
        kernel_for(CPU)


def test_a_cpu_gets_the_native_backend():
    assert kernel_for(CPU).name == "native"
    assert next(backend for backend in backends() if backend.name == "native").target != "none"


@pytest.mark.parametrize("target", ["scalar", "avx2"])
def test_the_environment_names_the_instruction_set(monkeypatch, target):
    monkeypatch.setenv("PAGEDOPT_TARGET", target)
    native = next(backend for backend in backends() if backend.name == "native")
    if not native.available:
        pytest.skip(f"this processor has no {target}")
    assert kernel_for(CPU).target == native.target == target


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("PAGEDOPT_TARGET", "mmx")
    with pytest.raises(ValueError, match="PAGEDOPT_TARGET=mmx cannot be met: this processor supports"):
        kernel_for(CPU)


def test_an_extension_that_cannot_load_is_said_once_and_replaced_by_the_reference(monkeypatch):
    """Never silently: the update is many times slower."""
    monkeypatch.setitem(sys.modules, "pagedopt.kernels._native", None)
    monkeypatch.delitem(sys.modules, "pagedopt.kernels.native", raising=False)
    for name in ("native", "_native"):
        monkeypatch.delattr(kernels, name, raising=False)
    select._kernel_for.cache_clear()
    with pytest.warns(UserWarning, match="native backend cannot run"):
        assert kernel_for(CPU).name == "reference"
    assert kernel_for(CPU).name == "reference"  # and no second warning, which would be an error here
    select._kernel_for.cache_clear()
