"""AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk.

from pagedopt import PagedAdamW8bit

optimizer = PagedAdamW8bit(model.parameters(), lr=2e-5, max_host_memory="2GiB", spill_dir="/scratch")
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from pagedopt.costs.planning import CostPlan, plan
    from pagedopt.observe.live import live
    from pagedopt.observe.trace import trace
    from pagedopt.pictures.plot import plot

__version__ = "0.1.0"

logging.getLogger("pagedopt").addHandler(logging.NullHandler())  # quiet, unless the program says otherwise

_LATER = {
    "CostPlan": "pagedopt.costs.planning",
    "live": "pagedopt.observe.live",
    "plan": "pagedopt.costs.planning",
    "plot": "pagedopt.pictures.plot",
    "trace": "pagedopt.observe.trace",
}
"""Names that most trainings do not need, and the modules that they are imported from when they are."""

__all__ = [
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "Backend",
    "BudgetError",
    "CheckpointError",
    "CorruptPageError",
    "CostPlan",
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
    "live",
    "load",
    "plan",
    "plot",
    "save",
    "step_in_backward",
    "trace",
]


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *_LATER]
