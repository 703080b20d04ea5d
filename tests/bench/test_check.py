"""The check catches what goes wrong in an AdamW, and passes what is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from bench.check import (
    BETAS,
    BFLOAT16,
    CODES8,
    CODES8_BFLOAT16,
    EPS,
    FLOAT32,
    LR,
    WEIGHT_DECAY,
    Oracle,
    Tolerance,
    check,
    tolerance_for,
)
from bench.workload import GRAD_SCALES, GRAD_STD, Shape, Workload
from pagedopt import AdamW8bit, AdamW32bit

CPU = torch.device("cpu")
ALL = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
SHAPES = (Shape(1, (20_001,)), Shape(9, (64, 65)))
RIGHT: list[tuple[Callable[..., Optimizer], torch.dtype, Tolerance]] = [
    (AdamW, torch.float32, FLOAT32),
    (AdamW, torch.bfloat16, BFLOAT16),
    (AdamW32bit, torch.float32, FLOAT32),
    (AdamW32bit, torch.bfloat16, BFLOAT16),
    (AdamW8bit, torch.float32, CODES8),
    (AdamW8bit, torch.bfloat16, CODES8_BFLOAT16),
]


class HalfStepped(AdamW):
    """Leaves the second half of every parameter as it is."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        before = [param.detach().clone() for group in self.param_groups for param in group["params"]]
        super().step()
        with torch.no_grad():
            for param, old in zip((p for g in self.param_groups for p in g["params"]), before, strict=True):
                param.view(-1)[param.numel() // 2 :] = old.view(-1)[param.numel() // 2 :]


class Forgetful(AdamW):
    """Starts its moments anew at every step."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.state.clear()
        super().step()


WRONG: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "no decay": lambda params: AdamW(params, **{**ALL, "weight_decay": 0.0}),
    "a tenth more": lambda params: AdamW(params, **{**ALL, "lr": LR * 1.1}),
    "uphill": lambda params: AdamW(params, **ALL, maximize=True),
    "decay in the gradient": lambda params: Adam(params, **ALL),
    "no moments": lambda params: SGD(params, lr=LR),
    "half of it": lambda params: HalfStepped(params, **ALL),
    "no memory": lambda params: Forgetful(params, **ALL),
    "nothing": lambda params: AdamW(params, **{**ALL, "lr": 0.0}),
    "not a number": lambda params: AdamW(params, **{**ALL, "lr": float("inf")}),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("make", "dtype", "tolerance"), RIGHT)
def test_a_right_optimizer_passes(
    make: Callable[..., Optimizer], dtype: torch.dtype, tolerance: Tolerance, shape: Shape
) -> None:
    workload = Workload(shape, dtype, CPU)
    verdict = check(make(workload.params, **ALL), workload, tolerance)
    assert verdict.is_right, verdict


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_optimizer_is_caught_even_by_the_widest_tolerance(
    wrong: Callable[[Iterable[Tensor]], Optimizer], dtype: torch.dtype
) -> None:
    workload = Workload(SHAPES[0], dtype, CPU)
    assert not check(wrong(workload.params), workload, CODES8_BFLOAT16).is_right


def test_the_betas_matter_to_float32() -> None:
    workload = Workload(SHAPES[0], torch.float32, CPU)
    optimizer = AdamW(workload.params, **{**ALL, "betas": (0.9, 0.951)})
    assert not check(optimizer, workload, FLOAT32).is_right


def test_the_oracle_is_torch_s_adamw_in_float64() -> None:
    start = torch.linspace(-1, 1, 101, dtype=torch.float64)
    param = torch.nn.Parameter(start.clone())
    optimizer, oracle = AdamW([param], **ALL), Oracle(start)
    for step in range(5):
        grad = torch.sin(start * (step + 1))
        param.grad = grad.clone()
        optimizer.step()
        oracle.step(grad)
    torch.testing.assert_close(param.detach(), oracle.params, rtol=1e-13, atol=0)


def test_8_bits_and_bfloat16_have_their_own_tolerances() -> None:
    found = {tolerance_for(is_8bit=b, dtype=d) for b in (False, True) for d in (torch.float32, torch.bfloat16)}
    assert found == {FLOAT32, BFLOAT16, CODES8, CODES8_BFLOAT16}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_candidate_gets_the_same_values(shape: Shape) -> None:
    one, other = Workload(shape, torch.float32, CPU), Workload(shape, torch.float32, CPU)
    assert torch.equal(one.sample_params(), other.sample_params())
    seen, scales = [], []
    for step in range(len(GRAD_SCALES)):
        one.draw_gradients(step)
        other.draw_gradients(step)
        assert torch.equal(one.sample_gradients(), other.sample_gradients())
        seen.append(one.sample_gradients() / GRAD_SCALES[step])
        scales.append(one.sample_gradients().std().item() / GRAD_STD)
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(seen))
    assert scales == pytest.approx(GRAD_SCALES, rel=0.1)


def test_a_sample_has_the_end_of_every_parameter() -> None:
    workload = Workload(Shape(3, (300_001,)), torch.float32, CPU)
    with torch.no_grad():
        for param in workload.params:
            param.zero_()
            param[-1] = 7.0
    assert (workload.sample_params() == 7.0).sum() >= 3
