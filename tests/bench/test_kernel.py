"""The kernels are timed on a page that they accept."""

from __future__ import annotations

import pytest
import torch

from bench import kernel
from pagedopt.kernels.native import NativeKernel


@pytest.mark.parametrize("name", kernel.FORMATS)
@pytest.mark.parametrize("dtype", kernel.DTYPES)
def test_a_kernel_alone_takes_time_for_every_format_and_dtype(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "IN_MEMORY", kernel.IN_CACHE)
    assert kernel.nanoseconds(NativeKernel(), kernel.FORMATS[name], dtype, kernel.IN_CACHE) > 0
