"""`save` and `load`: an optimizer's state to a folder and back, with no more of it in memory than its budget allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from pagedopt.checkpoint.layout import SavedParam
from pagedopt.checkpoint.progress import progress
from pagedopt.checkpoint.reading import Checkpoint, open_checkpoint
from pagedopt.checkpoint.writing import MAX_FILE_NBYTES, ParamSource, Pieces, write_checkpoint
from pagedopt.errors import CheckpointError
from pagedopt.formats.entry import Entry
from pagedopt.optim.base import PagedOptimizer
from pagedopt.optim.state_dicts import pack_groups
from pagedopt.optim.store import Record, Store
from pagedopt.units import parse_bytes


def save(
    optimizer: PagedOptimizer,
    path: str | os.PathLike[str],
    *,
    max_file_size: int | str = MAX_FILE_NBYTES,
    show_progress: bool | None = None,
) -> None:
    """Write the state and the parameter groups of `optimizer` to the folder `path`, in the place of a checkpoint there.

    State is streamed page by page from wherever it is. Until the new checkpoint is whole and on the disk the old one
    stays as it is, so there must be room for both; a crash at any moment leaves one of them. State-dict hooks do not
    fire: there is no state dict. Parameters are not saved: they are the model's.

    Args:
        optimizer: any of this package's.
        path: a folder; it is made, with those above it. Files in it that are no checkpoint's stay untouched.
        max_file_size: bytes after which a new data file is begun, an int or text such as `"4GiB"`.
        show_progress: whether to draw a bar on stderr; None: if there is much to write and stderr is a terminal.

    Raises:
        CheckpointError: the state or a group cannot be kept in a checkpoint, or the disk failed; what was there is as
            it was.
        StateLostError: the state is lost.
    """
    _check_optimizer(optimizer)
    max_file_nbytes = parse_bytes(max_file_size, name="max_file_size")
    with optimizer.settled() as store:
        groups = pack_groups(optimizer.param_groups)
        sources = list(_sources(optimizer, store, groups))
        write_checkpoint(Path(path), groups, sources, max_file_nbytes=max_file_nbytes, show_progress=show_progress)


def load(optimizer: PagedOptimizer, path: str | os.PathLike[str], *, show_progress: bool | None = None) -> None:
    """Put the state and groups that `save` wrote into `optimizer`, streamed into its pages within its budget.

    Its class, page size, budget, tiers and device may be others than those that saved: state is converted between 8 and
    32 bits with one warning that says so. Parameters with names on both sides are matched by name, others by position.
    Load hooks do not fire: there is no state dict.

    If `optimizer` has state already, everything is read and checked before it is touched, and then read again. A new
    one is filled while the checkpoint is read once, and is new again if the checkpoint turns out to be damaged.

    Args:
        optimizer: any of this package's.
        path: the folder.
        show_progress: as for `save`.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or its state does not fit; the message names the file or
            the parameter and the reason, and nothing was changed. If the disk fails between the check and the second
            reading, state that was there is gone, and the optimizer refuses to be used until state is loaded.
        SpillError, BudgetError: there is no room for the state.
    """
    _check_optimizer(optimizer)
    with open_checkpoint(Path(path)) as checkpoint:
        readings = 2 if any(optimizer.state.values()) else 1
        with progress(f"loading {path}", readings * checkpoint.nbytes, is_shown=show_progress) as advance:
            optimizer.replace_state(
                checkpoint.state_dict(), _recogniser(checkpoint, advance), lambda: checkpoint.verify(advance)
            )


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, PagedOptimizer):
        raise TypeError(f"optimizer must be one of pagedopt's, got {type(optimizer).__name__}")


def _recogniser(checkpoint: Checkpoint, advance: Callable[[int], None]) -> Callable[[Any, tuple[int, ...]], Entry]:
    def recognise(saved: SavedParam, shape: tuple[int, ...]) -> Entry:
        return checkpoint.entry(saved, shape, advance)

    return recognise


def _sources(optimizer: PagedOptimizer, store: Store, groups: list[dict[str, Any]]) -> Iterator[ParamSource]:
    """Yield what is to be saved, in the order of the groups."""
    foreign = [key for key in optimizer.state if not isinstance(key, Tensor)]
    if foreign:
        raise CheckpointError(
            f"optimizer.state has {foreign[0]!r}, which is no parameter; a checkpoint keeps parameters' state only"
        )
    numbers = [number for group in groups for number in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number, param in dict(zip(numbers, params, strict=True)).items():
        record = store.records.get(param)
        if record is None:
            continue
        if record.part.is_distributed:
            raise CheckpointError(
                f"parameter {number} is distributed; use torch.distributed.checkpoint, which saves each process's part"
            )
        step = float(store.counters.view(record.slot))
        yield ParamSource(
            number, record.part.local_shape, record.state_format, step, record.gnorm_history, _pieces(store, record)
        )


def _pieces(store: Store, record: Record) -> Callable[[], Pieces]:
    return lambda: closing(store.segments(record, dirty=False))
