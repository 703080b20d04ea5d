import pytest
import torch

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
