"""The native backend gives the bits of the reference, with every instruction set and every number of threads."""

from __future__ import annotations

import itertools

import pytest
import torch
from page_builder import POISON, Pages, Recipe, operands_of, scalars
from same_bits import DTYPES, after_steps, assert_same, assert_same_but_kinds_of_nan, gradients, with_value
from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels.native import TARGETS, NativeKernel
from pagedopt.kernels.reference import ReferenceKernel

SUPPORTED = [name for name, is_supported in TARGETS.items() if is_supported]
every_target = pytest.mark.parametrize("target", SUPPORTED)
every_format = pytest.mark.parametrize("state_format", list(StateFormat), ids=lambda f: f.name.lower())


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
    assert all((free == POISON).all() for free in ours.pages.free_bytes())


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
@pytest.mark.parametrize("dtype", DTYPES)
def test_single_odd_values_give_the_bits_of_the_reference(
    target: str, state_format: StateFormat, dtype: torch.dtype, value: float
) -> None:
    grads = [with_value(gradients(1, dtype), value), gradients(2, dtype)]
    ours = after_steps(NativeKernel(target), state_format, dtype, grads)
    assert_same_but_kinds_of_nan(ours, after_steps(ReferenceKernel(), state_format, dtype, grads))


@every_target
@every_format
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_parameters_give_the_bits_of_the_reference(
    target: str, state_format: StateFormat, dtype: torch.dtype
) -> None:
    """Subnormal ones, and others that are no numbers, beside those that an instruction for many rounds right."""
    params = gradients(0, dtype)
    for value in (float("nan"), float("inf"), torch.finfo(dtype).tiny / 2, -torch.finfo(dtype).tiny / 8):
        params = [param.roll(5) for param in with_value(params, value)]
    grads, recipe = [gradients(seed, dtype) for seed in (1, 2)], Recipe(lr=1e-41)
    ours = after_steps(NativeKernel(target), state_format, dtype, grads, recipe, params)
    theirs = after_steps(ReferenceKernel(), state_format, dtype, grads, recipe, params)
    assert_same_but_kinds_of_nan(ours, theirs)
    assert any(((param != 0) & (param.abs() < torch.finfo(dtype).tiny)).any() for param in theirs.params)


@every_target
@every_format
def test_a_scaled_gradient_gives_the_bits_of_the_reference(target: str, state_format: StateFormat) -> None:
    recipe = Recipe(lr=0.3, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, grad_scale=0.37)
    grads = [gradients(seed, torch.bfloat16) for seed in (1, 2, 3)]
    ours = after_steps(NativeKernel(target), state_format, torch.float32, grads, recipe)
    assert_same(ours, after_steps(ReferenceKernel(), state_format, torch.float32, grads, recipe))


@every_target
@every_format
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
