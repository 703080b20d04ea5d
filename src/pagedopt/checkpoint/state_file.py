"""State dicts in torch's files: read mapped into memory, running nothing in them; written whole or not at all."""

from __future__ import annotations

import pickle
import secrets
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pagedopt.checkpoint import files
from pagedopt.errors import CheckpointError


def read_state_file(path: Path) -> dict[str, Any]:
    """Return the state dict that `torch.save` wrote to `path`, its tensors mapped into memory.

    Raises:
        CheckpointError: it is no file of torch's, needs code to be read, or holds no optimizer's state dict.
    """
    try:
        loaded = _load(path)
    except Exception as error:  # what an unpickler raises that is fed with damaged bytes can be anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a state dict of torch: {reason}") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__} and no optimizer's state dict")
    if not {"state", "param_groups"} <= set(loaded):
        keys = ", ".join(map(repr, list(loaded)[:8])) or "nothing"
        raise CheckpointError(
            f"{path} holds {keys} and no optimizer's state dict, which has 'state' and 'param_groups'; save that alone"
        )
    return dict(loaded)


def _load(path: Path) -> Any:
    is_mappable = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        if "torchao" not in str(error):
            raise
        _allow_torchao()
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)


def _allow_torchao() -> None:
    """Let torch read torchao's quantized tensors, which importing it does."""
    try:
        import_module("torchao.optim")
    except ImportError:
        raise ValueError("it has torchao's tensors, and torchao is not installed") from None


def write_state_file(state_dict: dict[str, Any], path: Path) -> None:
    """Write a state dict to `path` as `torch.save` does; a crash leaves what was there, or all of the new file.

    Raises:
        CheckpointError: it could not be written; what was there is as it was.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        torch.save(state_dict, aside)
        fd = files.open_regular(aside)
        try:
            files.sync(fd)
        finally:
            files.close(fd)
        files.replace(aside, path)
        files.sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # the error that matters is the first
            files.remove(aside)
        raise CheckpointError(f"cannot write {path}: {str(error).lower()}") from error
