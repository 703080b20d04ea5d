"""The update itself: 32-bit state against torch and float64, 8-bit state against a simulation, clipping, bad values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import Parameter

from oracle import (
    Float64AdamW,
    SimulatedAdamW8bit,
    assert_same_params,
    give,
    random_grads,
    random_params,
    row_blocks,
    train,
    twins,
)
from pagedopt import AdamW, AdamW8bit, AdamW32bit, PagedAdamW, PagedAdamW32bit

SHAPES = [(120, 300), (17,), (), (5, 5, 5)]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "no decay": {"weight_decay": 0.0},
    "amsgrad, heavy decay": {"amsgrad": True, "weight_decay": 0.5},
    "no momentum": {"betas": (0.0, 0.99)},
    "large eps": {"eps": 1e-2},
}


def _largest_error(params: Sequence[Tensor], truth: Sequence[Float64AdamW]) -> float:
    return max(float((p.detach().double() - t.theta).abs().max()) for p, t in zip(params, truth, strict=True))


def _varied_grads(params: Sequence[Tensor], step: int) -> list[Tensor]:
    """Gradients whose size changes by step and by value, so that amsgrad and eps matter."""
    grads = random_grads(params, seed=step, scale=10.0 ** (2 * math.sin(step / 7)))
    return [g * torch.linspace(0.01, 1, max(g.numel(), 1))[: g.numel()].view_as(g) for g in grads]


# 32-bit state.


@pytest.mark.parametrize("cls", [AdamW, AdamW32bit, PagedAdamW, PagedAdamW32bit], ids=lambda c: c.__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_32_bit_state_is_as_close_to_the_truth_as_torch_over_100_steps(cls: Any, variant: str) -> None:
    """Errors against float64 are at most twice those of torch's own float32 AdamW, with a scheduler on top."""
    options = VARIANTS[variant]
    start = random_params(SHAPES)
    ours, theirs = twins(start)
    truth = [Float64AdamW(p, lr=1e-2, **options) for p in start]
    opt, peer = cls(ours, lr=1e-2, **options), torch.optim.AdamW(theirs, lr=1e-2, foreach=False, **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=60) for o in (opt, peer)]
    for step in range(100):
        grads = _varied_grads(start, step)
        for params, optimizer, schedule in zip((ours, theirs), (opt, peer), schedules, strict=True):
            give(params, grads)
            optimizer.step()
            schedule.step()
        for oracle, grad in zip(truth, grads, strict=True):
            oracle.update(grad)
            oracle.lr = schedules[1].get_last_lr()[0]
    assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
    one_ulp = torch.finfo(torch.float32).eps * max(float(t.theta.abs().max()) for t in truth)
    assert _largest_error(ours, truth) <= 2 * _largest_error(theirs, truth) + one_ulp


@pytest.mark.parametrize("variant", ["plain", "amsgrad"])
def test_32_bit_moments_are_torchs(variant: str) -> None:
    """Each entry of `state` is torch's entry of the same name, within the rounding of 20 steps of values below one."""
    ours, theirs = twins(random_params(SHAPES))
    opt = AdamW(ours, **VARIANTS[variant])
    peer = torch.optim.AdamW(theirs, foreach=False, **VARIANTS[variant])
    train(opt, ours, 20)
    train(peer, theirs, 20)
    for p, q in zip(ours, theirs, strict=True):
        assert set(opt.state[p]) == set(peer.state[q])
        for key, value in peer.state[q].items():
            assert torch.allclose(opt.state[p][key], value, rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_half_precision_parameters_are_updated_in_float32(cls: Any, dtype: torch.dtype) -> None:
    """Moments and update in float32, one rounding at the store: the float64 truth rounded the same way, but for ties.

    A float32 result within one part in 10^7 of a rounding boundary may fall on its other side: at most a value in a
    hundred over 100 steps, and then by two units in the last place of the largest that it has been.
    """
    start = random_params(SHAPES, dtype)
    ours = twins(start, 1)[0]
    truth = [Float64AdamW(p, lr=3e-2, stored_as=dtype) for p in start]
    sizes = [t.theta.abs() for t in truth]
    opt = cls(ours, lr=3e-2)
    for step in range(100):
        grads = [g.to(dtype) for g in random_grads([p.float() for p in start], seed=step)]
        give(ours, grads)
        opt.step()
        for oracle, grad in zip(truth, grads, strict=True):
            oracle.update(grad)
        sizes = [torch.maximum(size, t.theta.abs()) for size, t in zip(sizes, truth, strict=True)]
    for p, t, largest in zip(ours, truth, sizes, strict=True):
        error = (p.detach().double() - t.theta).abs()
        ulp = torch.finfo(dtype).eps * largest.clamp_min(torch.finfo(dtype).tiny)
        assert float((error > 0).float().mean()) <= 0.01
        assert bool((error <= 2 * ulp).all())
        assert opt.state[p]["exp_avg"].dtype == torch.float32


def test_mixed_dtypes_train_side_by_side_as_alone() -> None:
    """A page of segments of three dtypes gives each parameter what it gets alone."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    together = [random_params([(40, 130)], dtype, seed=i)[0] for i, dtype in enumerate(dtypes)]
    alone = twins(together, 1)[0]
    opt = PagedAdamW(together, lr=1e-2)
    for step in range(5):
        grads = random_grads(together, seed=step)
        give(together, grads)
        give(alone, grads)
        opt.step()
    for index, p in enumerate(alone):
        own = PagedAdamW([p], lr=1e-2)
        for step in range(5):
            give([p], [random_grads(together, seed=step)[index]])
            own.step()
    assert_same_params(together, alone)


# 8-bit state.


@pytest.mark.parametrize("shape", [(40, 256), (30, 300), (20, 64), (700, 20), (9000,), (6, 10, 100)])
@pytest.mark.parametrize("block_wise", [True, False])
def test_8_bit_state_is_the_simulation_of_quantize_and_dequantize(shape: tuple[int, ...], block_wise: bool) -> None:
    """The dequantized moments of a plain float32 program, over 20 steps.

    Both compute in float32 but not in the same order, so a moment at the middle of two codes may take the other code:
    a value in five hundred may differ by the width of one code, the rest by rounding alone.
    """
    param = random_params([shape])[0]
    ours = twins([param], 1)[0]
    blocks = row_blocks(shape) if block_wise else torch.zeros(param.numel(), dtype=torch.int64)
    truth = SimulatedAdamW8bit(param, blocks, lr=1e-2)
    opt = AdamW8bit(ours, lr=1e-2, min_8bit_size=0, block_wise=block_wise)
    for step in range(20):
        grad = random_grads([param], seed=step)[0]
        give(ours, [grad])
        opt.step()
        truth.update(grad)
    error = (ours[0].detach().flatten() - truth.theta).abs()
    assert float((error > 1e-5).float().mean()) <= 1 / 500
    assert float(error.max()) <= 0.2 * 1e-2 * 20
    assert opt.state[ours[0]]["exp_avg"].dtype == torch.int8


@pytest.mark.parametrize("cls", [AdamW8bit, AdamW], ids=lambda c: c.__name__)
def test_a_value_that_is_never_touched_stays_exactly_where_it_was(cls: Any) -> None:
    """Zero gradients inside a block of others, without decay: not an ulp of drift in 50 steps."""
    param = random_params([(30, 300)])[0]
    before = param.detach().clone()
    untouched = torch.rand(30, 300) < 0.5
    opt = cls([param], weight_decay=0.0)
    for step in range(50):
        give([param], [random_grads([param], seed=step)[0].masked_fill(untouched, 0.0)])
        opt.step()
    assert torch.equal(param[untouched], before[untouched])
    assert not torch.equal(param[~untouched], before[~untouched])


def _updates(optimizer: torch.optim.Optimizer, param: Parameter, history: list[Tensor]) -> list[float]:
    sizes = []
    for grad in history:
        before = param.detach().clone()
        give([param], [grad])
        optimizer.step()
        sizes.append(float((param.detach() - before).abs().max()))
    return sizes


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    exponents=st.lists(st.integers(-18, 12), min_size=1, max_size=25),
    spread=st.integers(0, 12),
    density=st.sampled_from((0.02, 0.3, 1.0)),
    block_wise=st.booleans(),
)
def test_no_update_of_8_bit_state_exceeds_four_of_the_largest_in_32_bits(
    seed: int, exponents: list[int], spread: int, density: float, block_wise: bool
) -> None:
    """Whatever the finite gradient history: sizes that jump by step and by value inside a block, sparse or dense."""
    generator = torch.Generator().manual_seed(seed)
    factor = 10.0 ** (-spread * torch.rand(600, generator=generator))
    history = []
    for exponent in exponents:
        grad = torch.randn(600, generator=generator) * factor * 10.0**exponent
        history.append(grad.masked_fill(torch.rand(600, generator=generator) > density, 0.0))
    start = Parameter(torch.zeros(600))
    ours, theirs = (pair[0] for pair in twins([start]))
    options: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.0}
    largest = max(_updates(torch.optim.AdamW([theirs], foreach=False, **options), theirs, history))
    small = max(_updates(AdamW8bit([ours], min_8bit_size=0, block_wise=block_wise, **options), ours, history))
    assert small <= 4 * largest * (1 + 1e-5)


@pytest.mark.parametrize("cls", [AdamW, AdamW8bit, PagedAdamW], ids=lambda c: c.__name__)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("block_wise", [True, False])
def test_a_bad_gradient_value_spoils_its_own_parameter_value_only(cls: Any, bad: float, block_wise: bool) -> None:
    """Its neighbours in block and page get the bits that a zero in its place gives them; it is NaN as in torch."""
    start = random_params([(30, 300), (64,)])
    spoiled, clean, theirs = twins(start, 3)
    opt, other = (cls(p, block_wise=block_wise, weight_decay=0.0) for p in (spoiled, clean))
    peer = torch.optim.AdamW(theirs, weight_decay=0.0, foreach=False)
    for step in range(4):
        grads = random_grads(start, seed=step)
        for g, shown in ((grads[0], (3, 5)), (grads[1], (9,))):
            g[shown] = bad if step == 1 else 0.0
        give(spoiled, grads)
        give(theirs, grads)
        give(clean, [g.nan_to_num(0.0, 0.0, 0.0) for g in grads])
        opt.step()
        peer.step()
        other.step()
    for p, q, r, shown in zip(spoiled, clean, theirs, ((3, 5), (9,)), strict=True):
        assert torch.isnan(p[shown])
        assert torch.isnan(r[shown])
        here = torch.ones_like(p, dtype=torch.bool)
        here[shown] = False
        assert torch.equal(p[here], q[here])


# Percentile clipping.


def _clip(history: list[float], squared: float, step: int, percentile: int) -> tuple[list[float], float]:
    """Return the history with this step's squared norm in it, and what its gradient is multiplied by."""
    history = [squared] * 100 if step == 1 else history[:]
    history[step % 100] = squared
    limit = math.sqrt(sorted(history)[percentile])
    return history, min(1.0, limit / math.sqrt(squared)) if squared else 1.0


@pytest.mark.parametrize("percentile", [5, 50, 95])
@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_percentile_clipping_scales_to_the_percentile_of_the_last_100_norms(cls: Any, percentile: int) -> None:
    """Each parameter by its own norms; the first step's norm stands for the 100 that are not there yet."""
    start = random_params([(20, 30), (7,)])
    ours = twins(start, 1)[0]
    truth = [Float64AdamW(p, lr=1e-2) for p in start]
    histories: list[list[float]] = [[], []]
    opt = cls(ours, lr=1e-2, percentile_clipping=percentile)
    clipped = 0
    for step in range(1, 131):
        grads = [g * 10.0 ** math.sin(step * (i + 1)) for i, g in enumerate(random_grads(start, seed=step))]
        give(ours, grads)
        opt.step()
        for i, (oracle, grad) in enumerate(zip(truth, grads, strict=True)):
            histories[i], scale = _clip(histories[i], float(grad.double().square().sum()), step, percentile)
            oracle.update(grad.double() * scale)
            clipped += scale < 1
    assert clipped > 0
    for p, oracle, history in zip(ours, truth, histories, strict=True):
        assert torch.allclose(p.double(), oracle.theta, rtol=1e-4, atol=1e-5)
        kept = opt.state[p]["gnorm_history"].double().sort().values
        assert torch.allclose(kept, torch.tensor(sorted(history), dtype=torch.float64), rtol=1e-4)


def test_percentile_100_is_off() -> None:
    """No history is kept and no bit differs from a class that was never asked."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = AdamW(ours, percentile_clipping=100), AdamW(theirs)
    train(opt, ours, 5)
    train(plain, theirs, 5)
    assert_same_params(ours, theirs)
    assert "gnorm_history" not in opt.state[ours[0]]


# All of it.


@pytest.mark.parametrize("bits", [32, 8])
def test_a_small_network_learns_as_well_as_with_torch(bits: int) -> None:
    """A regression that torch's AdamW brings far down: ours ends within a quarter of its loss."""
    losses = []
    for ours in (True, False):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(20, 128), nn.Tanh(), nn.Linear(128, 1))
        x = torch.randn(256, 20)
        target = x[:, :3].sin().sum(1, keepdim=True)
        opt: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if ours:
            opt = PagedAdamW(model.parameters(), lr=1e-2, optim_bits=bits, min_8bit_size=1000)
        first = float((model(x) - target).square().mean().detach())
        for _ in range(150):
            opt.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            opt.step()
        losses.append(float(loss.detach()) / first)
    assert losses[1] < 0.05
    assert losses[0] <= 1.25 * losses[1]
