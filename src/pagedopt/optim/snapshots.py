"""Memory for snapshots of state: RAM while it fits the host budget, files mapped into memory beyond that.

A mapped snapshot is written through the page cache, which the system empties under pressure, so that saving state that
lives on disk does not need RAM for it. Its file is removed as soon as it is mapped, where the system allows that.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.optim.store import Store
from pagedopt.units import format_bytes

_ALWAYS_RAM = 1 << 16
"""Bytes: arrays up to this size are never worth a file."""


def allocator_for(store: Store) -> Callable[..., Tensor]:
    """Return what allocates the arrays of a snapshot of `store`, like `torch.empty`."""
    budget = store.pager.host_budget_nbytes
    if budget is None or sum(record.nbytes for record in store.records.values()) <= budget:
        return torch.empty
    return mapped_in(store.pager.config.spill_dir)


def mapped_in(folder: Path | None) -> Callable[..., Tensor]:
    """Return what allocates tensors as files in `folder` that are mapped into memory, like `torch.empty`."""

    def mapped(shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> Tensor:
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes <= _ALWAYS_RAM:
            return torch.empty(shape, dtype=dtype, device=device)
        return _mapped_bytes(nbytes, folder).view(dtype).view(shape)

    return mapped


def _mapped_bytes(nbytes: int, folder: Path | None) -> Tensor:
    try:
        return _mapped_file(nbytes, folder)
    except OSError as error:
        where, reason = folder or Path(tempfile.gettempdir()), (error.strerror or str(error)).lower()
        raise SpillError(
            error.errno,
            f"could not make a file of {format_bytes(nbytes)} for a snapshot of the state in {where}: {reason}; free "
            "some room there, or use pagedopt.save, which needs no such file",
        ) from error


def _mapped_file(nbytes: int, folder: Path | None) -> Tensor:
    handle, path = tempfile.mkstemp(prefix="pagedopt-snapshot-", dir=folder)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, nbytes)  # a full disk must show here, not as a signal at a write
        else:
            os.truncate(handle, nbytes)
        mapped = torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)
    except BaseException:
        Path(path).unlink()
        raise
    finally:
        os.close(handle)
    if os.name == "posix":
        Path(path).unlink()
    else:  # a mapped file cannot be removed there
        weakref.finalize(mapped.untyped_storage(), Path(path).unlink, missing_ok=True)
    return mapped
