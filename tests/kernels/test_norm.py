import math

import pytest
import torch

from pagedopt.kernels.norm import CHUNK, runs
from pagedopt.kernels.reference import ReferenceKernel

KERNELS = [ReferenceKernel()]
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numel", [0, 1, 2047, CHUNK - 1, CHUNK, CHUNK + 1, 600_001])
def test_the_sum_of_squares_is_right_to_float32(kernel, dtype, numel):
    grad = torch.randn(numel, generator=torch.Generator().manual_seed(1)).to(dtype)
    norm = kernel.squared_norm(grad)
    assert norm.shape == ()
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(math.fsum((grad.double() ** 2).tolist()), rel=2.0**-23)


@EVERY_KERNEL
def test_memory_order_decides_the_sum_of_a_dense_tensor(kernel):
    grad = torch.randn(4, 3, 50, 70, generator=torch.Generator().manual_seed(1))
    memory = grad.contiguous(memory_format=torch.channels_last)
    assert kernel.squared_norm(memory) == kernel.squared_norm(memory.permute(0, 2, 3, 1).reshape(-1))
    assert kernel.squared_norm(grad.transpose(1, 3)) == kernel.squared_norm(grad)


@EVERY_KERNEL
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_shows(kernel, bad):
    grad = torch.ones(100_000)
    grad[77_777] = bad
    assert not kernel.squared_norm(grad).isfinite()


@EVERY_KERNEL
def test_a_strided_view_is_summed_over_its_own_values_alone(kernel):
    whole = torch.full((300, 400), math.nan)
    view = whole[::3, 5:300:7]
    view.copy_(torch.randn(view.shape, generator=torch.Generator().manual_seed(1)))
    assert kernel.squared_norm(view).item() == pytest.approx((view.double() ** 2).sum().item(), rel=2.0**-23)


def test_a_strided_view_is_never_copied_whole():
    view = torch.rand(400, 3, 1000)[:, :, ::2]
    parts = list(runs(view))
    assert sum(part.numel() for part in parts) == view.numel()
    assert max(part.numel() for part in parts) <= CHUNK
