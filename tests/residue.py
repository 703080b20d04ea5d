"""What paging takes of the machine: the smallest budget, and the files and threads that must be gone afterwards."""

from __future__ import annotations

import functools
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from pagedopt import PagedAdamW

_BYTES = re.compile(r"at least (\d+) bytes")
_SELF_FD = Path("/proc/self/fd")

needs_proc = pytest.mark.skipif(not _SELF_FD.exists(), reason="reads /proc to see open files and memory")


@functools.cache
def smallest_budget(page_size: int | str, prefetch_depth: int) -> int:
    """Return the bytes of the working set, read from what the error says that a budget of one byte gets."""
    params = [Parameter(torch.ones(1 << 20))]
    params[0].grad = torch.ones(1 << 20)
    with pytest.raises(ValueError, match="max_host_memory") as refused:
        PagedAdamW(params, page_size=page_size, max_host_memory=1, prefetch_depth=prefetch_depth).step()
    said = _BYTES.search(str(refused.value))
    assert said, f"no number of bytes that works in {refused.value}"
    return int(said[1])


def tight_paging(cls: type, folder: Path | None = None) -> dict[str, Any]:
    """Return paging arguments with the smallest budget: one frame for 8-bit classes, three and read-ahead for 32.

    State of 40,000 values in 32 bits or 70,000 in 8 bits is then read from and written to the disk at every step.
    """
    depth = 0 if "8bit" in cls.__name__ else 1
    paging = {"page_size": "64KiB", "prefetch_depth": depth, "max_host_memory": smallest_budget("64KiB", depth)}
    return paging if folder is None else {**paging, "spill_dir": folder}


def open_files_in(folder: Path) -> list[str]:
    """Return the files of this process that are open in `folder`, those already unlinked too."""
    links = []
    for fd in _SELF_FD.iterdir():
        try:
            links.append(str(fd.readlink()))
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return [link for link in links if link.startswith(str(folder))]


def wait_for_threads(count: int, seconds: float = 60.0) -> int:
    """Return the number of threads once it fell to `count`, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return threading.active_count()
