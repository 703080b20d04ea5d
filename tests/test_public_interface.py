"""What the package offers by name, and that nothing else is promised."""

from __future__ import annotations

import inspect
from importlib import metadata, resources
from typing import Any

import pytest
import torch

import pagedopt

PUBLIC = [
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "Backend",
    "BudgetError",
    "CheckpointError",
    "CorruptPageError",
    "CostPlan",
    "GlobalOptimManager",
    "InBackward",
    "MemoryStats",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedOptError",
    "Pager",
    "PagingStats",
    "SpillError",
    "StateLostError",
    "__version__",
    "backends",
    "export_state",
    "fetch_in_backward",
    "live",
    "load",
    "plan",
    "plot",
    "save",
    "step_in_backward",
    "trace",
]
"""In the order in which people look names up: 8 before 32."""


def test_the_public_names_are_sorted_and_exact() -> None:
    assert list(pagedopt.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    assert hasattr(pagedopt, name)


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("_")])
def test_every_public_name_is_documented_and_says_where_it_is_from(name: str) -> None:
    """Pickles, error messages and import paths show `__module__`."""
    public: Any = getattr(pagedopt, name)
    assert inspect.getdoc(public)
    assert public.__module__.startswith("pagedopt")


def test_every_public_verb_of_an_optimizer_is_documented() -> None:
    verbs = [
        "step",
        "step_param",
        "init_state",
        "set_lr",
        "memory_stats",
        "paging_stats",
        "step_stats",
        "reset_paging_stats",
    ]
    for verb in [*verbs, "flush", "close", "state_dict", "load_state_dict"]:
        assert inspect.getdoc(getattr(pagedopt.PagedAdamW, verb)), verb
    assert isinstance(inspect.getattr_static(pagedopt.PagedAdamW, "lr"), property)


def test_the_package_is_typed() -> None:
    assert resources.files("pagedopt").joinpath("py.typed").is_file()


def test_the_version_is_that_of_the_distribution() -> None:
    try:
        installed = metadata.version("pagedopt")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is run from its sources and not installed")
    assert pagedopt.__version__ == installed


def test_an_error_is_caught_as_what_it_is() -> None:
    """Each is a `PagedOptError` and the builtin that people catch."""
    builtin = {
        "BudgetError": ValueError,
        "CheckpointError": ValueError,
        "SpillError": OSError,
        "CorruptPageError": OSError,
        "StateLostError": RuntimeError,
    }
    for name, base in builtin.items():
        error = getattr(pagedopt, name)
        assert issubclass(error, pagedopt.PagedOptError)
        assert issubclass(error, base)
    assert not issubclass(pagedopt.PagedOptError, (ValueError, OSError, RuntimeError))


def test_the_six_optimizers_are_torch_optimizers() -> None:
    for name in PUBLIC:
        if "AdamW" in name:
            assert issubclass(getattr(pagedopt, name), torch.optim.Optimizer)


def test_backends_says_what_can_run_here() -> None:
    """The reference runs everywhere."""
    assert "reference" in str(pagedopt.backends())
