"""Seconds: the slowest stage binds, and the others cost once more what they take for one page."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedopt import PagedAdamW8bit
from pagedopt.costs.prediction import COMPUTE, DEVICE, DISK, HOST, Prediction, Traffic, predict
from pagedopt.costs.rates import Rates, RatesError
from pagedopt.costs.rehearsal import Account, rehearse
from pagedopt.costs.weights import Weight
from pagedopt.paging.config import PagingConfig

NUMEL = 1 << 20
RATES = Rates(
    {"host": 1e12, "disk_read": 1e12, "disk_write": 1e12, "disk_both": 1e12, "up": 1e12, "down": 1e12},
    {"blockwise8/float32": 1e15},
    {},
)


@pytest.fixture
def account() -> Account:
    config = PagingConfig.parse(page_size="64KiB", max_host_memory="512KiB")
    return rehearse([Weight("w", (1024, 1024))], PagedAdamW8bit, config, torch.device("cpu"), {})


def predicted(account: Account, rates: Rates, *, on_accelerator: bool = False, num_params: int = 1) -> Prediction:
    return predict(account, rates, Traffic.of(account), num_params=num_params, on_accelerator=on_accelerator)


def slow(name: str, rate: float) -> Rates:
    return replace(RATES, bytes_per_second={**RATES.bytes_per_second, name: rate})


def test_a_slow_disk_binds(account: Account) -> None:
    found = predicted(account, slow("disk_both", 1e6))

    assert found.binds == DISK
    assert found.terms[DISK] == pytest.approx(account.steady_step.moved_nbytes / 1e6)
    assert found.seconds == pytest.approx(found.terms[DISK], rel=1e-3)


def test_slow_memory_binds(account: Account) -> None:
    assert predicted(account, slow("host", 1e6)).binds == HOST


def test_a_slow_kernel_binds(account: Account) -> None:
    found = predicted(account, replace(RATES, values_per_second={"blockwise8/float32": 1e6}))

    assert found.binds == COMPUTE
    assert found.terms[COMPUTE] == pytest.approx(NUMEL / 1e6)


def test_bookkeeping_is_computing(account: Account) -> None:
    pages = account.steady_step.moved_nbytes / 2 / account.page_nbytes
    found = predicted(account, replace(RATES, seconds={"page": 1.0, "parameter": 10.0}), num_params=3)

    assert found.terms[COMPUTE] == pytest.approx(pages + 30, rel=1e-6)


def test_what_goes_one_way_has_that_ways_rate(account: Account) -> None:
    rates = replace(RATES, bytes_per_second={**RATES.bytes_per_second, "disk_read": 1e6, "disk_write": 2e6})

    for traffic, seconds in (
        (Traffic(0, 0, 1e6, 0), 1.0),
        (Traffic(0, 0, 0, 1e6), 0.5),
        (Traffic(0, 0, 2e6, 1e6), 1.0),
    ):
        found = predict(account, rates, traffic, num_params=1, on_accelerator=False)
        assert found.terms[DISK] == pytest.approx(seconds, rel=1e-3)


def test_copies_to_a_device_and_from_it_go_at_once_and_the_slower_binds(account: Account) -> None:
    moved = account.steady_step.moved_nbytes
    for name, rate in (("up", moved / 8), ("down", moved / 20)):
        found = predicted(account, slow(name, rate), on_accelerator=True)

        assert found.binds == DEVICE
        assert found.terms[DEVICE] == pytest.approx(moved / 2 / rate, rel=0.1)
    assert DEVICE not in predicted(account, slow("up", 1.0)).terms


def test_the_other_stages_cost_a_page_more(account: Account) -> None:
    pages = account.steady_step.moved_nbytes / 2 / account.page_nbytes
    found = predicted(account, replace(slow("disk_both", 1e6), values_per_second={"blockwise8/float32": 2e6}))
    slowest = max(found.terms.values())

    assert found.seconds == pytest.approx(slowest + (sum(found.terms.values()) - slowest) / pages)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 1.0])
def test_what_the_longer_of_update_and_disk_does_not_hide_is_added(account: Account, overlap: float) -> None:
    rates = replace(slow("disk_both", 1e6), values_per_second={"blockwise8/float32": 2e6})
    alone, found = predicted(account, rates), predicted(account, replace(rates, overlap=overlap))

    assert found.seconds - alone.seconds == pytest.approx((1 - overlap) * min(alone.terms[COMPUTE], alone.terms[DISK]))
    assert found.binds == alone.binds


def test_an_accelerator_shares_nothing_with_the_disk(account: Account) -> None:
    rates = replace(RATES, overlap=0.0)

    assert predicted(account, rates, on_accelerator=True) == predicted(account, RATES, on_accelerator=True)


def test_a_resident_step_needs_no_rate_of_a_disk() -> None:
    config = PagingConfig.resident()
    resident = rehearse([Weight("w", (1024, 1024))], PagedAdamW8bit, config, torch.device("cuda"), {})

    found = predicted(resident, Rates({}, RATES.values_per_second, {}), on_accelerator=True)

    assert set(found.terms) == {COMPUTE}
    assert found.seconds == found.terms[COMPUTE]


def test_a_rate_that_is_needed_and_missing_is_an_error(account: Account) -> None:
    with pytest.raises(RatesError, match="disk_both"):
        predicted(account, Rates({"host": 1.0}, RATES.values_per_second, {}))
