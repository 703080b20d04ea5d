"""The demo's budget, and what it counts of its pager."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedopt import Pager
from pagedopt.demo.paging import RECORDED_STEPS, STEADY_STEP, PagingMeter, PagingUse, page_nbytes_for, parse_budget
from pagedopt.paging.device import DevicePager
from pagedopt.paging.sweep import sweep
from pagedopt.pictures.residency import END_OF_STEP

PAGE = 64 << 10


@pytest.mark.parametrize(
    ("text", "nbytes", "shown"),
    [
        ("25%", 250, "25% of the state"),
        (" 10 % ", 100, "10% of the state"),
        ("100%", 1000, "100% of the state"),
        ("4KiB", 4096, "4 KiB"),
        ("512", 512, "512 B"),
    ],
)
def test_a_budget_is_bytes_or_a_share(text: str, nbytes: int, shown: str) -> None:
    budget = parse_budget(text)

    assert budget.of(1000) == nbytes
    assert str(budget) == shown


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "%", "nan%", "lots", "0", "", "-4MiB"])
def test_a_wrong_budget_is_named_with_its_value(text: str) -> None:
    with pytest.raises(ValueError, match="budget") as error:
        parse_budget(text)

    assert text in str(error.value)


@pytest.mark.parametrize(
    ("state", "page"), [(1, 64), (4 << 10, 64), (16 << 10, 256), (20 << 10, 256), (1 << 20, 16 << 10)]
)
def test_pages_are_powers_of_two_that_cut_a_state_into_at_least_64(state: int, page: int) -> None:
    assert page_nbytes_for(state << 10) == page << 10


def test_the_bound_is_what_a_cycle_must_move_and_the_working_set(use: PagingUse) -> None:
    assert use.bound_nbytes == (16 - 4 + 2) << 20
    assert replace(use, budget_nbytes=64 << 20).bound_nbytes == 0


def test_steps_before_the_steady_one_do_not_count(use: PagingUse) -> None:
    assert use.read_nbytes[STEADY_STEP - 2] > use.steady_read_nbytes == 14 << 20


def test_a_meter_counts_each_step_and_records_the_first() -> None:
    pager = Pager(page_size=PAGE, max_host_memory=8 * PAGE)
    pages = pager.on(torch.device("cpu"))
    try:
        numbers = [_full_page(pages) for _ in range(20)]
        meter = PagingMeter(pages)
        for step in range(1, 7):
            for _, frame in sweep(pages, numbers):
                frame.add_(1)
            meter.after_step(step)
        use = meter.use
    finally:
        pager.close()

    assert (use.num_pages, use.live_nbytes, use.frame_nbytes, use.budget_nbytes) == (20, 20 * PAGE, 8 * PAGE, 8 * PAGE)
    assert len(use.read_nbytes) == len(use.written_nbytes) == len(use.stalled_seconds) == 6
    assert use.read_nbytes[0] == 0
    assert (20 - 8) * PAGE <= use.steady_read_nbytes <= use.bound_nbytes
    assert (20 - 8) * PAGE <= use.steady_written_nbytes <= use.bound_nbytes
    assert sum(event.name == END_OF_STEP for event in use.events) == RECORDED_STEPS
    assert sum(event.name == "pin" for event in use.events) == RECORDED_STEPS * 20


def _full_page(pages: DevicePager) -> int:
    number, _ = pages.open_page()
    pages.claim(number, PAGE)
    pages.close_page()
    return number
