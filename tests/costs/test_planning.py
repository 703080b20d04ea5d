"""`pagedopt.plan`: the smallest budget is the smallest, a GiB buys what it says, and a wrong argument is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pagedopt
from pagedopt.costs.planning import GIB
from pagedopt.costs.rates import Rates
from pagedopt.costs.weights import SizesError

RATES = Rates(
    dict.fromkeys(("host", "disk_read", "disk_write", "disk_both", "up", "down"), 1e9),
    {"blockwise8/float32": 1e9, "blockwise8/bfloat16": 1e9, "float32/float32": 1e9},
    {"page": 1e-5, "parameter": 1e-6},
)


def plan(sizes: Any = "1B", **arguments: Any) -> pagedopt.CostPlan:
    return pagedopt.plan(sizes, **{"device": "cpu", "rates": RATES, "max_host_memory": "128MiB", **arguments})


@given(st.sampled_from([None, "64KiB", "1MiB"]), st.integers(0, 40), st.sampled_from(["cpu", "cuda"]))
def test_the_least_budget_works_and_a_byte_less_does_not(page_size: str | None, depth: int, device: str) -> None:
    name = "max_host_memory" if device == "cpu" else "max_gpu_memory"
    sizes = {"page_size": page_size, "prefetch_depth": depth, "device": device, "rates": False}
    least = plan("1M", **{"max_gpu_memory": 0, "max_host_memory": 0, **sizes}).least_budget_nbytes

    assert plan("1M", **{"max_host_memory": 0, **sizes, name: least}).account.budget_nbytes == least
    with pytest.raises(pagedopt.BudgetError):
        plan("1M", **{"max_host_memory": 0, **sizes, name: least - 1})


@pytest.mark.parametrize(("device", "name"), [("cpu", "max_host_memory"), ("cuda", "max_gpu_memory")])
def test_one_more_gib_moves_as_much_less_as_is_said(device: str, name: str) -> None:
    """To a page a tier and way: what binds there is whole pages."""
    budgets = {"max_host_memory": "2GiB", "max_gpu_memory": "2GiB"}
    before = plan("3B", device=device, **budgets)
    after = plan("3B", device=device, **{**budgets, name: "3GiB"})
    gain = next(gain for gain in before.gains if gain.budget == name)

    saved = before.account.steady_step.moved_nbytes - after.account.steady_step.moved_nbytes
    assert abs(gain.moved_nbytes - saved) <= 4 * before.account.page_nbytes
    assert gain.moved_nbytes == 2 * GIB
    assert before.prediction is not None
    assert after.prediction is not None
    assert gain.seconds == pytest.approx(before.prediction.seconds - after.prediction.seconds, rel=0.05)


def test_one_more_gib_of_ram_takes_traffic_off_the_disk() -> None:
    arguments = {"device": "cuda", "max_gpu_memory": "1GiB"}
    before, after = (plan("4B", max_host_memory=budget, **arguments) for budget in ("2GiB", "3GiB"))
    gain = next(gain for gain in before.gains if gain.budget == "max_host_memory")

    def of_disk(found: pagedopt.CostPlan) -> int:
        return found.account.steady_step.read["disk"] + found.account.steady_step.written["disk"]

    assert gain.moved_nbytes == 0
    assert gain.disk_nbytes == pytest.approx(of_disk(before) - of_disk(after), rel=0.05)


def test_what_is_resident_gains_nothing() -> None:
    assert plan("1M").gains == ()


def test_a_thousand_steps_write_a_thousand_times_what_one_writes() -> None:
    found = plan()

    assert found.written_per_thousand_steps == 1000 * found.account.steady_step.written["disk"] > 0


def test_what_is_printed_names_every_number_that_decides() -> None:
    text = str(plan("1B", max_host_memory="128MiB", page_size="4MiB"))

    for said in (
        "PagedAdamW8bit on cpu",
        "state       1.89 GiB, blockwise8, in 485 pages of 4 MiB",
        "32 of 485 pages resident; the smallest that works is 20 MiB",
        "each later step   128 MiB",
        "a step takes 3.8",
        "what binds is disk",
        "1000 steps write 1.73 TiB to the disk",
        "one more GiB of max_host_memory: a step moves 2 GiB less",
        "disk both 1 GB/s",
    ):
        assert said in text, said


def test_json_has_the_same_numbers() -> None:
    found = plan()
    data = json.loads(found.to_json())

    assert data["account"]["steady_step"]["written"]["disk"] == found.account.steady_step.written["disk"]
    assert data["prediction"]["binds"] == "disk"
    assert data["rates"]["bytes_per_second"]["host"] == 1e9
    assert data["gains"][0]["budget"] == "max_host_memory"
    assert data["account"]["memory"]["pages"] == found.account.num_pages


def test_without_rates_there_are_bytes_and_a_reason() -> None:
    found = plan(rates=False)

    assert found.prediction is None
    assert found.gains[0].seconds is None
    assert "not known: no rates were asked for" in str(found)


def test_a_device_that_is_not_here_needs_budgets_and_rates_of_its_own() -> None:
    if torch.accelerator.is_available():
        pytest.skip("here is an accelerator")
    assert "there is no cuda device here to measure" in str(plan(device="cuda", max_gpu_memory="1GiB", rates=None))
    with pytest.raises(ValueError, match="max_gpu_memory must be given"):
        plan(device="cuda")


def test_lora_trains_its_matrices_only() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 32))
    found = plan(model, lora_rank=4, target_modules=["1"])

    assert (found.num_params, found.num_values) == (2, 4 * (128 + 32))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "SGD"}, ValueError, "optimizer must be one of AdamW, AdamW8bit"),
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer must be one of"),
        ({"optimizer": "PagedAdamW8bit", "amsgrad": True}, ValueError, "amsgrad=True needs 32-bit state"),
        ({"optimizer": "AdamW8bit"}, ValueError, "keeps everything resident, so max_host_memory would be ignored"),
        ({"optim_bits": 16}, ValueError, "optim_bits must be 8 or 32"),
        ({"device": "abacus"}, ValueError, "device must be such as cpu or cuda, got 'abacus'"),
        ({"device": "meta"}, ValueError, "nothing is trained on meta"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32, bfloat16, float16"),
        ({"lora_rank": 0}, ValueError, "lora_rank must be a whole number of at least 1"),
        ({"max_host_memory": "1 pound"}, ValueError, "max_host_memory must be bytes"),
        ({"spill_dir": "/nowhere"}, ValueError, "spill_dir must be an existing folder"),
        ({"sizes": "7Q"}, SizesError, "no file or folder '7Q'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(**arguments)


def test_an_automatic_budget_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagedopt.paging.pager.automatic_host_nbytes", lambda: 1 << 29)
    found = plan(max_host_memory=None, page_size="4MiB")

    assert found.is_automatic
    assert found.account.budget_nbytes == 1 << 29
    assert "max_host_memory 512 MiB (automatic): 128 of 485 pages resident" in str(found)
    assert not plan().is_automatic


def test_the_resident_classes_can_be_planned_too() -> None:
    found = pagedopt.plan("1B", optimizer=pagedopt.AdamW, dtype="float32", device="cpu", rates=RATES)

    assert found.account.steady_step.moved_nbytes == 0
    assert found.account.state_nbytes == 8 * 10**9
    assert "every page is resident" in str(found)


@pytest.mark.parametrize(("short", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("float", "float32")])
def test_a_dtype_may_be_called_as_people_call_it(short: str, dtype: str) -> None:
    found = plan("1M", device="cpu", max_host_memory="1GiB", dtype=short, rates=False)

    assert {values.dtype for values in found.account.values} == {dtype}


def test_a_plan_that_nobody_would_wait_for_is_refused_and_a_long_one_is_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"more than 1,191,973,686 pages of 16 MiB.* larger budgets"):
        plan("9999T", device="cpu", max_host_memory="1GiB", rates=False)

    monkeypatch.setattr("pagedopt.costs.planning.MANY_PAGES", 1)
    said: list[str] = []
    plan("64M", device="cpu", max_host_memory="1GiB", rates=False, say=said.append)
    assert said == ["what becomes of 7 pages"]
