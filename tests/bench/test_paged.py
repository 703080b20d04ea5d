"""Budgets in bytes, and what a step then must move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.paged import Paged, Sizes
from bench.workload import Shape

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = Shape(1, (32_000_000,))
STATE = 65_000_000  # two codes a value, two float32 absmax for 256
PAGE = 1 << 20


def sizes(share: float, device: torch.device = GPU) -> Sizes:
    return Sizes(SHAPE, torch.float32, device, share, PAGE)


def test_what_is_not_resident_moves_twice_in_a_step() -> None:
    quarter = sizes(0.25)
    assert quarter.state_nbytes == STATE
    assert quarter.budget_nbytes == STATE // 4
    assert quarter.minimum_nbytes == 2 * 3 * STATE // 4


def test_nothing_resident_is_the_working_set_and_everything_has_room_for_the_last_page() -> None:
    assert sizes(0.0).budget_nbytes == 5 * PAGE
    assert sizes(1.0).budget_nbytes > STATE + PAGE
    assert sizes(1.0).minimum_nbytes == 0


def test_a_budget_is_of_the_memory_in_which_the_step_runs() -> None:
    assert sizes(0.25, CPU).arguments == {"page_size": PAGE, "max_host_memory": STATE // 4}
    assert sizes(0.25, GPU).arguments == {"page_size": PAGE, "max_gpu_memory": STATE // 4, "max_host_memory": 0}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_bytes_moved_are_those_of_a_steady_step(tmp_path: Path, share: float) -> None:
    small = Sizes(Shape(1, (400_000,)), torch.float32, CPU, share, 1 << 16)
    paged = Paged(small, tmp_path)
    assert paged.facts() == {}
    try:
        ready = paged.candidate().prepare()
        assert ready.verdict.is_right
        assert ready.nbytes == paged.facts()[f"paged {share:.0%}".replace("%", " %") + ": bytes a step moved"]
        working_set = 5 << 16
        assert small.minimum_nbytes <= ready.nbytes <= small.minimum_nbytes + 2 * working_set
    finally:
        paged.close()
