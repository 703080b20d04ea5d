"""Steps of a kernel on parameters of every awkward length, and what of two kernels' results must be the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from page_builder import DEFAULTS, Pages, Recipe, operands_of, scalars
from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels.args import Kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1,), (255,), (256,), (257,), (1001,), (5, 300), (9, 64), (3, 7), (40, 1000)]
"""One value, a block less one, a block, a block and one, an odd number, short last blocks, and several pages."""


@dataclass(frozen=True)
class Outcome:
    """The parameters of `SHAPES`, their state, and the pages after some steps."""

    params: list[Tensor]
    states: list[dict[str, Tensor]]
    pages: Pages


def gradients(seed: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([1e-3, 1.0, 30.0])
    grads = []
    for shape in SHAPES:
        numel = torch.Size(shape).numel()
        sizes = spread[torch.randint(3, (numel,), generator=generator)]
        grads.append((torch.randn(numel, generator=generator) * sizes * scale).to(dtype))
    return grads


def with_value(grads: list[Tensor], value: float) -> list[Tensor]:
    """Return gradients of which some are `value`, in blocks where others are not."""
    grads = [grad.clone() for grad in grads]
    for grad in grads:
        grad[:: 1 + len(grad) // 3] = value
    return grads


def after_steps(
    kernel: Kernel,
    state_format: StateFormat,
    param_dtype: torch.dtype,
    grads_by_step: list[list[Tensor]],
    recipe: Recipe = DEFAULTS,
    params: list[Tensor] | None = None,
) -> Outcome:
    """Make a step with each of the gradients, by default on parameters of the size of gradients."""
    pages = Pages(SHAPES, [state_format] * len(SHAPES), capacity=1 << 14)
    params = [param.clone() for param in params] if params else gradients(0, param_dtype)
    for step, grads in enumerate(grads_by_step, start=1):
        pages.update(kernel, operands_of(params, list(grads), [scalars(step, recipe)]))
    return Outcome(params, [pages.state(operand) for operand in range(len(SHAPES))], pages)


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    """NaN, too."""
    _assert_all(ours, theirs, lambda a, b: torch.equal(a.view(torch.uint8), b.view(torch.uint8)))


def assert_same_but_kinds_of_nan(ours: Outcome, theirs: Outcome) -> None:
    """NaN in the same places; which one an operation makes is up to the processor."""
    _assert_all(ours, theirs, lambda a, b: torch.equal(a.isnan(), b.isnan()) and torch.equal(_numbers(a), _numbers(b)))


def _assert_all(ours: Outcome, theirs: Outcome, same: Callable[[Tensor, Tensor], bool]) -> None:
    assert all(same(a, b) for a, b in zip(ours.params, theirs.params, strict=True))
    for a, b in zip(ours.states, theirs.states, strict=True):
        assert [name for name in a if not same(a[name], b[name])] == []


def _numbers(values: Tensor) -> Tensor:
    """Return the bytes of `values` with zero in the place of NaN."""
    return torch.where(values.isnan(), torch.zeros_like(values), values).view(torch.uint8)
