"""Ranges that torch's profiler shows, named `pagedopt::step, update, wait, read` and `write`.

A range costs a look at a flag while nobody profiles.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

_NO_RANGE = nullcontext()


def profiled(name: str) -> AbstractContextManager[Any]:
    """Return a context that is the range `pagedopt::<name>` while a profiler of torch runs."""
    if not profiler._is_profiler_enabled:  # noqa: SLF001 - what torch's own optimizers ask
        return _NO_RANGE
    return profiler.record_function(f"pagedopt::{name}")
