"""What every test gets: a seeded torch, Hypothesis without a clock, and GPU tests that say why they do not run."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}

_GPUS = ("cuda", "xpu")
_accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
_HAS_GPU = _accelerator is not None and _accelerator.type in _GPUS

if not _HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any test imports Triton: its kernels then run on the CPU

settings.register_profile("default", max_examples=30, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers whatever ran before it.

    One thread, unless a test asks for more: its tensors are small, and threads that spin hurt what runs beside them.
    """
    torch.set_num_threads(1)
    torch.manual_seed(20_240_817)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _HAS_GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch finds none here"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "gpu" in getattr(r, "keywords", {})]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} GPU tests did not run: torch finds no GPU here")
