"""What a step costs the host, counted: steps of many small tensors wait for Python and not for memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedopt import PagedAdamW8bit, step_in_backward
from pagedopt.kernels.select import kernel_for


class Launches:
    """A kernel that counts its calls and does nothing."""

    name = "counted"

    def __init__(self) -> None:
        self.updates = 0

    def update(self, *_: Any) -> None:
        self.updates += 1

    def measure(self, *_: Any) -> None:
        raise AssertionError("no page has tensor-wise state")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    kernel = Launches()
    monkeypatch.setattr("pagedopt.optim.base.kernel_for", lambda _: kernel)
    return kernel


def calls_of(work: Callable[[], object]) -> int:
    """Return how many Python functions `work` enters."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def lora(num_tensors: int) -> tuple[PagedAdamW8bit, list[Tensor]]:
    params = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(num_tensors)]
    for param in params:
        param.grad = torch.randn(64, 64)
    optimizer = PagedAdamW8bit(params, lr=1e-3)
    for _ in range(2):
        optimizer.step()
    return optimizer, params


def test_no_python_runs_between_the_tensors_of_a_step(launches):
    few, many = (calls_of(lora(num_tensors)[0].step) for num_tensors in (10, 200))
    assert many - few < 10, "a step enters functions by tensor"


def test_a_page_of_many_tensors_is_one_launch(launches):
    optimizer, _ = lora(200)
    before = launches.updates
    optimizer.step()
    assert launches.updates == before + 1


def test_stepping_one_parameter_costs_the_same_whatever_the_others():
    def calls(num_tensors: int) -> int:
        optimizer, params = lora(num_tensors)
        optimizer.step_param(params[3])
        return calls_of(lambda: optimizer.step_param(params[3]))

    assert kernel_for(torch.device("cpu")).name in ("native", "reference")
    assert calls(200) == calls(10) < 250


def test_a_parameter_replaced_in_its_group_is_stepped_in_backward_like_any_other():
    """The look at one parameter alone must not miss that another object is in its place."""
    optimizer, params = lora(3)
    new = torch.nn.Parameter(torch.ones(64, 64))
    optimizer.param_groups[0]["params"][1] = new
    with step_in_backward(optimizer):
        new.square().sum().backward()
    assert (new < 1).all()
    assert new in optimizer.state
    with pytest.raises(KeyError, match="no parameter of this optimizer"):
        optimizer.step_param(params[1], torch.ones(64, 64))
