"""State dicts in torch's files: read mapped into memory, running nothing in them; written whole or not at all."""

from __future__ import annotations

import pickle
import re
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pagedopt.checkpoint import files
from pagedopt.checkpoint.archive import is_archive, open_archive
from pagedopt.checkpoint.progress import progress
from pagedopt.errors import CheckpointError


def read_state_file(path: Path, *, unchecked: bool = False) -> dict[str, Any]:
    """Return the state dict that `torch.save` wrote to `path`, its tensors mapped into memory.

    Args:
        path: the file.
        unchecked: compare no checksums, and read what is left of a damaged file.

    Raises:
        CheckpointError: it is no file of torch's, is damaged or has no checksums that could tell, needs code to be
            read, or holds no optimizer's state dict.
    """
    try:
        if not unchecked:
            _check(path)
        loaded = _load(path)
    except CheckpointError:
        raise
    except Exception as error:  # what an unpickler raises that is fed with damaged bytes can be anything
        raise CheckpointError(f"{path} cannot be read as a state dict of torch: {_reason(error)}") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__} and no optimizer's state dict")
    if not {"state", "param_groups"} <= set(loaded):
        keys = ", ".join(map(repr, list(loaded)[:8])) or "nothing"
        raise CheckpointError(
            f"{path} holds {keys} and no optimizer's state dict, which has 'state' and 'param_groups'; save that alone"
        )
    return dict(loaded)


_NOT_ALLOWED = re.compile(r"(?i:unsupported (?:global: )?global) (\S+)")


def _reason(error: Exception) -> str:
    """Return why torch could not read a file, in a line, without its advice to run what is in it."""
    refused = _NOT_ALLOWED.search(str(error))
    if refused:
        return f"it has {refused[1]}, which would have to be run; save the optimizer's state dict alone"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Weights only load failed"):
        lines = [line.partition("WeightsUnpickler error: ")[2] for line in lines if "WeightsUnpickler error: " in line]
        return lines[0] if lines else "what is in it is no state dict, or damaged"
    return lines[0] if lines else type(error).__name__


def _check(path: Path) -> None:
    """Refuse a file whose tensors are not those that were saved, as far as it can tell."""
    if not is_archive(path):
        warnings.warn(
            f"{path} is in torch's format from before 1.6, which has no checksums: damaged tensors cannot be seen",
            stacklevel=2,
        )
        return
    with open_archive(path) as archive:
        if not archive.has_checksums:
            raise CheckpointError(
                f"{path} has no checksums, as after torch.serialization.set_crc32_options(False): damage could not be "
                "seen; save it with them, or read it as it is with --unchecked"
            )
        with progress(f"checking {path}", archive.nbytes) as advance:
            for line in archive.damage(advance):
                raise CheckpointError(f"{line}; take another copy of the file, or read it as it is with --unchecked")


def _load(path: Path) -> Any:
    is_mappable = _is_mappable(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        if "torchao" not in str(error):
            raise
        _allow_torchao()
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)


def _is_mappable(path: Path) -> bool:
    if not is_archive(path):
        return False
    with open_archive(path) as archive:
        return archive.is_stored


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
    if path.is_dir():
        raise CheckpointError(f"cannot write {path}: it is a folder; name a file in it")
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
