"""The native backend gives the bits of the reference, with every instruction set and every number of threads."""

from __future__ import annotations

import itertools

import pytest
import torch
from page_builder import POISON, Pages, operands_of, scalars
from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels.native import TARGETS, NativeKernel
from pagedopt.kernels.reference import ReferenceKernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SUPPORTED = [name for name, is_supported in TARGETS.items() if is_supported]
SHAPES = [(1,), (255,), (256,), (257,), (1001,), (5, 300), (9, 64), (3, 7), (40, 1000)]
"""One value, a block less one, a block, a block and one, an odd number, short last blocks, and several pages."""

every_target = pytest.mark.parametrize("target", SUPPORTED)
every_format = pytest.mark.parametrize("state_format", list(StateFormat), ids=lambda f: f.name.lower())


def gradients(seed: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([1e-3, 1.0, 30.0])
    grads = []
    for shape in SHAPES:
        numel = torch.Size(shape).numel()
        sizes = spread[torch.randint(3, (numel,), generator=generator)]
        grads.append((torch.randn(numel, generator=generator) * sizes * scale).to(dtype))
    return grads


def after_steps(
    kernel: ReferenceKernel | NativeKernel,
    state_format: StateFormat,
    param_dtype: torch.dtype,
    grads_by_step: list[list[Tensor]],
) -> tuple[list[Tensor], list[dict[str, Tensor]], Pages]:
    """Return parameters and state after a step with each of the gradients, and the pages."""
    pages = Pages(SHAPES, [state_format] * len(SHAPES), capacity=1 << 14)
    params = gradients(0, param_dtype)
    for step, grads in enumerate(grads_by_step, start=1):
        pages.update(kernel, operands_of(params, list(grads), [scalars(step)]))
    return params, [pages.state(operand) for operand in range(len(SHAPES))], pages


def assert_same(
    ours: tuple[list[Tensor], list[dict[str, Tensor]], Pages],
    theirs: tuple[list[Tensor], list[dict[str, Tensor]], Pages],
) -> None:
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))  # NaN too
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


def test_the_portable_target_is_always_there() -> None:
    assert "scalar" in SUPPORTED


@every_target
@every_format
@pytest.mark.parametrize(("param_dtype", "grad_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_every_target_gives_the_bits_of_the_reference(
    target: str, state_format: StateFormat, param_dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    grads = [gradients(seed, grad_dtype) for seed in (1, 2, 3)]
    ours = after_steps(NativeKernel(target), state_format, param_dtype, grads)
    assert_same(ours, after_steps(ReferenceKernel(), state_format, param_dtype, grads))
    assert all((free == POISON).all() for free in ours[2].free_bytes())


@every_target
@every_format
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e30])
def test_gradients_that_underflow_and_overflow_give_the_bits_of_the_reference(
    target: str, state_format: StateFormat, scale: float
) -> None:
    grads = [gradients(seed, torch.float32, scale) for seed in (1, 2)] + [gradients(3, torch.float32)]
    ours = after_steps(NativeKernel(target), state_format, torch.float32, grads)
    assert_same(ours, after_steps(ReferenceKernel(), state_format, torch.float32, grads))


@every_target
@every_format
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
def test_single_odd_values_give_the_bits_of_the_reference(target: str, state_format: StateFormat, value: float) -> None:
    odd = [gradients(seed, torch.float32) for seed in (1, 2)]
    for grad in odd[0]:
        grad[:: 1 + len(grad) // 3] = value
    results = [after_steps(k, state_format, torch.float32, odd) for k in (NativeKernel(target), ReferenceKernel())]
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert all(torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()) for name in ours)


@every_target
@pytest.mark.parametrize("state_format", list(StateFormat), ids=lambda f: f.name.lower())
def test_the_number_of_threads_never_changes_a_bit(target: str, state_format: StateFormat) -> None:
    """On a page large enough that it is shared out."""
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        pages = Pages([(700, 1300)], [state_format], capacity=1 << 22)
        params = [torch.linspace(-1, 1, 700 * 1300)]
        generator = torch.Generator().manual_seed(4)
        for step in (1, 2):
            grads: list[Tensor | None] = [torch.randn(700 * 1300, generator=generator)]
            pages.update(NativeKernel(target), operands_of(params, grads, [scalars(step)]))
        results.append((params[0], pages.state(0)))
    for param, state in results[1:]:
        assert torch.equal(param, results[0][0])
        assert all(torch.equal(state[name], results[0][1][name]) for name in state)


@every_target
@every_format
def test_a_thread_that_flushes_subnormals_never_changes_a_bit(target: str, state_format: StateFormat) -> None:
    """Neither the bits that it computes nor those of threads that it starts."""
    grads = [gradients(seed, torch.float32, 1e-38) for seed in (1, 2)]
    wide = torch.full((500_001,), 1e-20).mul_(1e-20)
    expected = after_steps(NativeKernel(target), state_format, torch.float32, grads)
    expected_norm = NativeKernel(target).squared_norm(wide)
    for threads in (1, 11):  # more than any other test has started
        torch.set_num_threads(threads)
        assert torch.set_flush_denormal(True), "this processor cannot flush"
        try:
            assert (torch.tensor([1e-20]) * 1e-20).item() == 0, "the check cannot fail"
            flushed = after_steps(NativeKernel(target), state_format, torch.float32, grads)
            norm = NativeKernel(target).squared_norm(wide)
        finally:
            torch.set_flush_denormal(False)
        assert_same(flushed, expected)
        assert torch.equal(norm.view(torch.int32), expected_norm.view(torch.int32))


@every_target
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_norm_of_a_gradient_is_the_references_to_the_bit(target: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for dtype in DTYPES:
        grad = torch.randn(3, 70_001, generator=torch.Generator().manual_seed(5)).to(dtype)
        for shape in (grad, grad.t(), grad[:, ::2]):
            assert torch.equal(NativeKernel(target).squared_norm(shape), ReferenceKernel().squared_norm(shape))


def test_a_target_that_this_processor_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"this processor supports the targets .*scalar, not 'mmx'"):
        NativeKernel("mmx")
