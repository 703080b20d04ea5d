"""What the program of docs/checkpoints.md leaves is what the page says it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pagedopt

MIB = 1 << 20


@pytest.fixture
def names(run_page: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_page("docs/checkpoints.md")


def test_the_program_of_the_page_resumes_and_exports(names: dict[str, Any]) -> None:
    optimizer, resumed, wide = (names[name] for name in ("optimizer", "resumed", "wide"))
    param = names["model"].weight
    assert torch.equal(resumed.state[param]["exp_avg"], optimizer.state[param]["exp_avg"])
    assert resumed.memory_stats().budget_bytes == wide.memory_stats().budget_bytes == MIB
    assert wide.state[param]["exp_avg"].dtype == torch.float32
    assert torch.equal(names["theirs"].state[param]["exp_avg"], wide.state[param]["exp_avg"])
    assert names["for_bitsandbytes"]["state"][0]["state1"].dtype == torch.uint8


def test_what_the_commands_of_the_page_converted_loads(names: dict[str, Any]) -> None:
    loaded = names["new_optimizer"](pagedopt.PagedAdamW32bit)
    pagedopt.load(loaded, "converted")
    assert list(loaded.state_dict()["state"]) == [0, 1]
