"""`export_state`: state dicts that torch's and bitsandbytes' AdamW load and go on from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pagedopt.checkpoint.groups import bitsandbytes_groups, torch_groups
from pagedopt.errors import CheckpointError
from pagedopt.formats.bitsandbytes import write_bitsandbytes
from pagedopt.formats.entry import Entry
from pagedopt.formats.torch_adamw import write_torch
from pagedopt.optim.arguments import HYPERPARAMETERS, MIN_8BIT_SIZE
from pagedopt.optim.base import PagedOptimizer
from pagedopt.optim.overrides import GlobalOptimManager
from pagedopt.optim.snapshots import allocator_for
from pagedopt.optim.state_dicts import pack_groups
from pagedopt.optim.store import Record, Store

Format = Literal["torch", "bitsandbytes"]


def export_state(
    optimizer: PagedOptimizer,
    format: Format,  # noqa: A002 - the word that says it
    *,
    optim_bits: int | None = None,
    min_8bit_size: int = MIN_8BIT_SIZE,
    wrapped: bool = False,
) -> dict[str, Any]:
    """Return the state of `optimizer` as a state dict of another library, a snapshot of CPU tensors.

    `"torch"` is what `torch.optim.AdamW` loads: float32 moments. `"bitsandbytes"` is what its AdamW classes load. There
    the state that is loaded decides how it is kept, whatever the class: with `optim_bits=None` every parameter is as it
    is here; say 8 or 32 for a class of that many bits. 8-bit state is block-wise, in flat blocks of 256.

    Args:
        optimizer: any of this package's.
        format: `"torch"` or `"bitsandbytes"`.
        optim_bits: bitsandbytes only: 8, 32, or None for as it is here.
        min_8bit_size: with `optim_bits=8`, parameters with fewer values have 32-bit state.
        wrapped: bitsandbytes only: as 0.49.2 and later write it; the flat layout is read by every version.

    Raises:
        ValueError: another format or number of bits, or bits asked of torch.
        CheckpointError: bitsandbytes has no such optimizer (amsgrad, maximize).
        StateLostError: the state is lost.
    """
    _check(optimizer, format, optim_bits, wrapped)
    with optimizer.settled() as store:
        groups = pack_groups(optimizer.param_groups)
        _warn_of_overrides(optimizer)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        numbers = [number for group in groups for number in group["params"]]
        entries = {
            number: (record.part.local_shape, _entry(store, record))
            for number, param in zip(numbers, params, strict=True)
            if (record := store.records.get(param)) is not None
        }
        empty = allocator_for(store)
        if format == "torch":
            return as_torch(groups, entries, empty)
        return as_bitsandbytes(groups, entries, empty, bits=optim_bits, min_8bit_size=min_8bit_size, wrapped=wrapped)


Entries = dict[int, tuple[tuple[int, ...], Entry]]
"""The shape and entry of each parameter by its number in the groups."""


def as_torch(
    groups: list[dict[str, Any]], entries: Entries, empty: Callable[..., Tensor] = torch.empty
) -> dict[str, Any]:
    """Return entries as torch.optim.AdamW's state dict."""
    amsgrads = {number: bool(group.get("amsgrad")) for group in groups for number in group["params"]}
    state = {
        number: write_torch(entry.open(), entry.step, shape, amsgrad=amsgrads.get(number, False), empty=empty)
        for number, (shape, entry) in entries.items()
    }
    return {"state": state, "param_groups": torch_groups(groups)}


def as_bitsandbytes(
    groups: list[dict[str, Any]],
    entries: Entries,
    empty: Callable[..., Tensor] = torch.empty,
    *,
    bits: int | None = None,
    min_8bit_size: int = MIN_8BIT_SIZE,
    wrapped: bool = False,
) -> dict[str, Any]:
    """Return entries as the state dict of bitsandbytes' AdamW."""
    groups = bitsandbytes_groups(groups)
    state = {
        number: write_bitsandbytes(
            entry.open(),
            entry.step,
            shape,
            is_8bit=entry.is_8bit if bits is None else bits == 8 and math.prod(shape) >= min_8bit_size,
            wrapped=wrapped,
            gnorms=entry.gnorms,
            empty=empty,
        )
        for number, (shape, entry) in entries.items()
    }
    return {"state": state, "param_groups": groups}


def _entry(store: Store, record: Record) -> Entry:
    """Return the entry of a live parameter, which reads its pages."""
    if record.part.is_distributed:
        raise CheckpointError(
            "a parameter is distributed; gather its state with torch.distributed.checkpoint.state_dict first"
        )
    return Entry(
        source="pages",
        step=float(store.counters.view(record.slot)),
        is_8bit=record.state_format.is_8bit,
        open=lambda: store.reader(record),
        gnorms=record.gnorm_history,
    )


def _check(optimizer: object, format: str, optim_bits: int | None, wrapped: bool) -> None:  # noqa: A002 - as above
    if not isinstance(optimizer, PagedOptimizer):
        raise TypeError(f"optimizer must be one of pagedopt's, got {type(optimizer).__name__}")
    if format not in ("torch", "bitsandbytes"):
        raise ValueError(f"format must be 'torch' or 'bitsandbytes', got {format!r}")
    if optim_bits not in (None, 8, 32):
        raise ValueError(f"optim_bits must be 8, 32 or None, got {optim_bits!r}")
    if format == "torch" and (optim_bits == 8 or wrapped):
        raise ValueError("torch's state is 32-bit and flat: optim_bits=8 and wrapped=True are bitsandbytes'")


def _warn_of_overrides(optimizer: PagedOptimizer) -> None:
    """Say that hyperparameters of single parameters stay behind: groups do not have them."""
    ours = {id(param) for group in optimizer.param_groups for param in group["params"]}
    overridden = [
        config
        for param, config in GlobalOptimManager.get_instance().overrides()
        if id(param) in ours and set(config) & set(HYPERPARAMETERS)
    ]
    if overridden:
        warnings.warn(
            f"{len(overridden)} parameter(s) have hyperparameters of their own, which a state dict does not carry; set "
            "them where the state is loaded",
            stacklevel=3,
        )
