"""Real text that is on every machine: the sources of Python's own standard library, and batches of it.

    files in sorted order    abc.py  aifc.py  antigravity.py  ...  asyncio/events.py  ...
                             every tenth file is for validation, all others are for training

So the text is the same wherever the same Python is.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pagedopt.errors import PagedOptError

VALIDATION_STRIDE = 10
"""One file in this many is for validation."""

MIN_NBYTES = 1 << 20
"""A library smaller than this has lost its sources (some systems keep only byte code, or a zip file)."""

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


class NoTextError(PagedOptError):
    """This Python has no sources of its standard library."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Text for training and for validation, from different files: uint8 [bytes] each."""

    train: Tensor
    validation: Tensor
    num_files: int


def source_files(root: Path) -> list[Path]:
    """Return the standard library's own source files under `root`, sorted by their path within it."""
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(found) if _NOT_LIBRARY.isdisjoint(path.parts)]


def read_corpus(root: Path | None = None) -> Corpus:
    """Return the sources under `root` (default: this Python's standard library), split by file.

    Raises:
        NoTextError: there is too little of it to train on.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    train, validation = bytearray(), bytearray()
    files = source_files(root)
    for position, path in enumerate(files):
        part = validation if position % VALIDATION_STRIDE == 0 else train
        part += path.read_bytes()
    if len(train) + len(validation) < MIN_NBYTES:
        raise NoTextError(
            f"{root} holds {len(train) + len(validation)} bytes of Python sources, the demo trains on at least "
            f"{MIN_NBYTES}; use a Python that has the sources of its standard library"
        )
    return Corpus(_bytes_tensor(train), _bytes_tensor(validation), len(files))


def batches(text: Tensor, *, batch_size: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, without end, inputs and the bytes that follow them: int64 [batch_size, context] each, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(context + 1)
    while True:
        starts = torch.randint(len(text) - context, (batch_size, 1), generator=generator)
        windows = text[starts + offsets].long()
        yield windows[:, :-1], windows[:, 1:]


def _bytes_tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
