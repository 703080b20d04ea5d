"""A small training whose state does not fit its budget, for whatever watches it."""

from __future__ import annotations

from pathlib import Path

import torch

from pagedopt import PagedAdamW8bit

PAGE_NBYTES = 64 << 10
BUDGET = 6 * PAGE_NBYTES


def small_optimizer(folder: Path, *, num_pages: int = 12) -> PagedAdamW8bit:
    """Return an optimizer of about `num_pages` pages, half of which fit, with gradients."""
    param = torch.nn.Parameter(torch.zeros(num_pages * 32_000))
    param.grad = torch.ones_like(param)
    return PagedAdamW8bit([param], page_size=PAGE_NBYTES, max_host_memory=BUDGET, spill_dir=folder)
