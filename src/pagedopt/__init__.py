"""AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk.

from pagedopt import PagedAdamW8bit

optimizer = PagedAdamW8bit(model.parameters(), lr=2e-5, max_host_memory="2GiB", spill_dir="/scratch")
"""

from pagedopt.checkpoint.export import export_state
from pagedopt.checkpoint.saving import load, save
from pagedopt.errors import (
    BudgetError,
    CheckpointError,
    CorruptPageError,
    PagedOptError,
    SpillError,
    StateLostError,
)
from pagedopt.kernels.select import Backend, backends
from pagedopt.optim.adamw import AdamW, AdamW8bit, AdamW32bit, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit
from pagedopt.optim.in_backward import InBackward, fetch_in_backward, step_in_backward
from pagedopt.optim.overrides import GlobalOptimManager
from pagedopt.optim.statistics import MemoryStats
from pagedopt.paging.pager import Pager
from pagedopt.paging.stats import PagingStats

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "Backend",
    "BudgetError",
    "CheckpointError",
    "CorruptPageError",
    "GlobalOptimManager",
    "InBackward",
    "MemoryStats",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedOptError",
    "Pager",
    "PagingStats",
    "SpillError",
    "StateLostError",
    "__version__",
    "backends",
    "export_state",
    "fetch_in_backward",
    "load",
    "save",
    "step_in_backward",
]
