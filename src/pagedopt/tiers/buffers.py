"""Memory that a disk can be read into directly, and a view of a tensor's bytes for the operating system."""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pagedopt.units import format_bytes

DIRECT_ALIGNMENT = 4096
"""Address, offset and length of a direct transfer are multiples of this: the largest block size in common use."""

HUGE_NBYTES = 2 << 20
"""A huge page of x86-64 and of most ARM systems. Disks move memory of these faster: a transfer has fewer pieces."""


def new_host_buffer(nbytes: int) -> Tensor:
    """Return zeros, uint8 [nbytes], in RAM of its own that starts at a page of the CPU.

    The memory goes back to the system as soon as the last tensor over it dies.

    Raises:
        MemoryError: the system gives no more.
    """
    try:
        memory = _anonymous_memory(nbytes)
    except OSError as error:
        raise MemoryError(f"the system has no {format_bytes(nbytes)} of RAM for a page ({error.strerror})") from None
    return torch.frombuffer(memory, dtype=torch.uint8)


def _anonymous_memory(nbytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and nbytes >= HUGE_NBYTES:
        with suppress(OSError):  # a kernel built without them: small pages serve as well, a little slower
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, which lives for as long as the view."""
    assert tensor.device.type == "cpu"
    assert tensor.is_contiguous()
    nbytes = tensor.numel() * tensor.element_size()
    memory: Any = (ctypes.c_char * nbytes).from_address(tensor.data_ptr())
    memory.tensor = tensor  # an address alone keeps nothing
    return memoryview(memory).cast("B")


def is_aligned(tensor: Tensor) -> bool:
    """Return whether `tensor` can take part in a direct transfer."""
    return tensor.data_ptr() % DIRECT_ALIGNMENT == 0 and tensor.numel() % DIRECT_ALIGNMENT == 0
