"""The truth that optimizers are held to: AdamW in float64, 8-bit state simulated in float32, and twins to train.

Nothing here comes from the package under test: the formulas are those of the AdamW, AMSGrad and 8-bit optimizer papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Gradients = Sequence["Tensor | None"]


@dataclass
class Float64AdamW:
    """AdamW of one parameter (Loshchilov & Hutter, algorithm 2) with every value in float64.

    `stored_as` rounds the parameter, and nothing else, to that dtype after each update, as a bfloat16 model does.
    """

    theta: Tensor
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    amsgrad: bool = False
    maximize: bool = False
    stored_as: torch.dtype = torch.float64
    step: int = 0
    m: Tensor = field(init=False)
    v: Tensor = field(init=False)
    v_max: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.theta = self.theta.detach().to(torch.float64, copy=True)
        self.m, self.v, self.v_max = (torch.zeros_like(self.theta) for _ in range(3))

    def update(self, grad: Tensor) -> None:
        beta1, beta2 = self.betas
        self.step += 1
        g = grad.detach().to(torch.float64) * (-1 if self.maximize else 1)
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        self.v_max = torch.maximum(self.v_max, self.v)
        m_hat = self.m / (1 - beta1**self.step)
        v_hat = (self.v_max if self.amsgrad else self.v) / (1 - beta2**self.step)
        theta = self.theta - self.lr * (m_hat / (v_hat.sqrt() + self.eps) + self.weight_decay * self.theta)
        self.theta = theta.to(self.stored_as).to(torch.float64)


def codebook(*, signed: bool) -> Tensor:
    """Return the 256 values of dynamic tree quantization, sorted, float64.

    Dettmers et al., "8-bit Optimizers via Block-wise Quantization": decade i of 0..6 has n = 2^i (signed) or 2^(i+1)
    values 10^(i-6) * (0.1 + 0.9 (k + 1/2) / n), their negatives when signed, plus 0 and 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        n = 2**i if signed else 2 ** (i + 1)
        positive = [10.0 ** (i - 6) * (0.1 + 0.9 * (k + 0.5) / n) for k in range(n)]
        values += positive + ([-x for x in positive] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float64)


def quantize_dequantize(values: Tensor, blocks: Tensor, *, signed: bool) -> Tensor:
    """Return flat `values` rounded to the nearest code times its block's absmax; only exact zeros become zero.

    Args:
        values: flat, any float dtype.
        blocks: int64, for each value the number of its block.
    """
    book = codebook(signed=signed)
    values64 = values.to(torch.float64)
    absmax = torch.zeros(int(blocks.max()) + 1, dtype=torch.float64).scatter_reduce(0, blocks, values64.abs(), "amax")
    scaled = values64 / absmax[blocks].clamp_min(torch.finfo(torch.float64).tiny)
    right = torch.searchsorted(book, scaled).clamp(1, len(book) - 1)
    nearest = torch.where(scaled - book[right - 1] < book[right] - scaled, right - 1, right)
    zero = int((book == 0).nonzero())
    beside_zero = torch.where(scaled < 0, zero - 1, zero + 1)
    code = torch.where((nearest == zero) & (values64 != 0), beside_zero, nearest)
    code = torch.where(values64 == 0, zero, code)
    return (book[code] * absmax[blocks]).to(values.dtype)


def row_blocks(shape: Sequence[int]) -> Tensor:
    """Return the block of each value: 256 consecutive values of one row of dimension 0, flat where rows are narrow."""
    numel = math.prod(shape)
    width = math.prod(shape[1:]) if len(shape) > 1 else numel
    width = width if len(shape) > 1 and width >= 64 else numel
    index = torch.arange(numel)
    return (index // width) * -(-width // 256) + index % width // 256


@dataclass
class SimulatedAdamW8bit:
    """AdamW in float32 whose moments are quantized and dequantized after each step: `m` signed, `sqrt(v)` unsigned."""

    theta: Tensor
    blocks: Tensor
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    step: int = 0
    m: Tensor = field(init=False)
    root_v: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.theta = self.theta.detach().to(torch.float32, copy=True).flatten()
        self.m, self.root_v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)

    def update(self, grad: Tensor) -> None:
        beta1, beta2 = self.betas
        self.step += 1
        g = grad.detach().to(torch.float32).flatten()
        m = beta1 * self.m + (1 - beta1) * g
        v = beta2 * self.root_v.square() + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**self.step)
        root_v_hat = v.sqrt() / math.sqrt(1 - beta2**self.step)
        self.theta -= self.lr * (m_hat / (root_v_hat + self.eps) + self.weight_decay * self.theta)
        self.m = quantize_dequantize(m, self.blocks, signed=True)
        self.root_v = quantize_dequantize(v.sqrt(), self.blocks, signed=False)


def twins(params: Iterable[Tensor], count: int = 2) -> list[list[Parameter]]:
    """Return `count` independent copies of `params`, equal to the bit, same strides."""
    originals = list(params)
    return [[Parameter(p.detach().clone()) for p in originals] for _ in range(count)]


def random_params(
    shapes: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(tuple(shape), generator=generator).to(dtype)) for shape in shapes]


def random_grads(params: Iterable[Tensor], seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(p.shape), generator=generator).mul_(scale).to(p.dtype) for p in params]


def give(params: Iterable[Tensor], grads: Gradients) -> None:
    """Set each parameter's gradient to its own copy, or to None."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.detach().clone()


def train(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    steps: int | range,
    *,
    gradients: Callable[[int], Gradients] | None = None,
    scheduler: Any = None,
) -> None:
    """Run `steps` steps with the same gradients for the same step number, whoever trains."""
    for step in steps if isinstance(steps, range) else range(steps):
        give(params, gradients(step) if gradients else random_grads(params, seed=1000 + step))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same_params(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"parameter {i} of shape {tuple(a.shape)} differs in {int((a != b).sum())} values"


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Two state dicts hold the same keys, dtypes, shapes and bits."""
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, entry in ours["state"].items():
        other = theirs["state"][index]
        assert entry.keys() == other.keys()
        for key, value in entry.items():
            assert value.dtype == other[key].dtype, (index, key)
            assert value.shape == other[key].shape, (index, key)
            assert torch.equal(value, other[key]), (index, key)
