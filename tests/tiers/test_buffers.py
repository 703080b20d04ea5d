"""Memory for direct transfers."""

from __future__ import annotations

import mmap
import weakref

import pytest
import torch

from pagedopt.tiers.buffers import DIRECT_ALIGNMENT, bytes_of, is_aligned, new_host_buffer


@pytest.mark.parametrize("nbytes", [1, 8, 4096, 5000, 4 << 20])
def test_a_buffer_is_zero_and_starts_at_a_page_of_the_cpu(nbytes: int) -> None:
    buffer = new_host_buffer(nbytes)
    assert buffer.shape == (nbytes,)
    assert buffer.dtype == torch.uint8
    assert not buffer.any()
    assert buffer.data_ptr() % DIRECT_ALIGNMENT == 0
    assert is_aligned(buffer) == (nbytes % DIRECT_ALIGNMENT == 0)
    assert nbytes < 2 or not is_aligned(buffer[1:])


def test_a_view_is_the_tensors_memory() -> None:
    tensor = torch.arange(10, dtype=torch.int16)
    view = bytes_of(tensor)
    assert len(view) == 20
    view[2] = 77
    assert tensor[1] == 77
    assert bytes(view) == tensor.view(torch.uint8).numpy().tobytes()


def test_no_more_memory_is_a_memory_error_that_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: int, **__: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", exhausted)
    with pytest.raises(MemoryError, match="the system has no 4 MiB of RAM"):
        new_host_buffer(4 << 20)


def test_a_kernel_without_huge_pages_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "invalid argument")

    monkeypatch.setattr(mmap, "mmap", Memory)
    assert not new_host_buffer(4 << 20).any()


def test_a_view_of_bytes_keeps_its_tensor() -> None:
    """A copy that only the view is of, such as a page that was brought from an accelerator, is not freed under it."""
    tensor = torch.arange(6).view(2, 3)
    freed = weakref.ref(tensor)
    view = bytes_of(tensor)[8:]
    del tensor
    assert freed() is not None
    assert bytes(view[:1]) == b"\x01"
    del view
    assert freed() is None
