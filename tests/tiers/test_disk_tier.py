"""Pages on a real disk: order, checksums, slots, threads, staging."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedopt.errors import CorruptPageError, SpillError
from pagedopt.tiers import disk
from pagedopt.tiers.base import EndedTransfer
from pagedopt.tiers.buffers import bytes_of, new_host_buffer
from pagedopt.tiers.disk import DiskTier

PAGE = 16 << 10


def page_of(value: int, nbytes: int = PAGE) -> Tensor:
    return new_host_buffer(nbytes).fill_(value)


def reserved(folder: Path, count: int, page_nbytes: int = PAGE) -> DiskTier:
    tier = DiskTier(page_nbytes, folder)
    for page in range(count):
        tier.reserve(page, page_nbytes)
    return tier


def value_of(tier: DiskTier, page: int) -> int:
    into = new_host_buffer(PAGE)
    tier.read(page, into).wait()
    assert (into == into[0]).all()
    return int(into[0])


def test_nothing_is_opened_before_the_first_page_needs_room(tmp_path: Path) -> None:
    before = threading.active_count()
    tier = DiskTier(PAGE, tmp_path)
    assert tier.file_nbytes == tier.usage.disk_nbytes == 0
    assert threading.active_count() == before
    assert tier.describe() == "no spill file is open"
    tier.close()


def test_a_page_reads_back_as_last_written(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 5)
    for value in range(3):
        for page in range(5):
            tier.write(page, page_of(10 * value + page))  # not waited for: order is the tier's matter
    assert [value_of(tier, page) for page in range(5)] == [20, 21, 22, 23, 24]
    assert tier.home(3) == "disk"
    assert tier.usage.disk_nbytes == 5 * PAGE
    tier.close()


def test_room_is_taken_when_a_page_is_reserved_in_growing_extents(tmp_path: Path) -> None:
    tier = DiskTier(PAGE, tmp_path)
    sizes = []
    for page in range(20):
        tier.reserve(page, PAGE)
        sizes.append(tier.file_nbytes // PAGE)
        assert sizes[-1] > page
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32]
    tier.close()


def test_where_the_next_extent_does_not_fit_a_page_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = os.posix_fallocate

    def nearly_full(fd: int, offset: int, nbytes: int) -> None:
        if offset + nbytes > 10 * PAGE:
            raise OSError(errno.ENOSPC, "no space left on device")
        allocate(fd, offset, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    tier = reserved(tmp_path, 10)
    with pytest.raises(SpillError, match="free some, set spill_dir to a larger disk"):
        tier.reserve(10, PAGE)
    assert tier.usage.disk_nbytes == 10 * PAGE
    tier.release(4)
    tier.reserve(10, PAGE)
    tier.close()


def test_the_room_of_a_released_page_is_used_again_lowest_first(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 8)
    size = tier.file_nbytes
    for page in (6, 1, 3):
        tier.release(page)
    for page in (8, 9, 10):
        tier.reserve(page, PAGE)
    assert [tier._slots[page].offset // PAGE for page in (8, 9, 10)] == [1, 3, 6]
    assert tier.file_nbytes == size
    tier.close()


def test_a_flipped_bit_is_a_corrupt_page(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 3)
    for page in range(3):
        tier.write(page, page_of(page)).wait()
    assert tier._file is not None
    block = new_host_buffer(4096).fill_(1)
    block[123] = 3
    tier._file.write(bytes_of(block), tier._slots[1].offset + 8192)
    transfer = tier.read(1, new_host_buffer(PAGE))
    for _ in range(2):  # a failure is told to everyone who waits
        with pytest.raises(CorruptPageError, match=r"page 1 .* is not what was written"):
            transfer.wait()
    assert [value_of(tier, 0), value_of(tier, 2)] == [0, 2]
    tier.close()


def test_swapped_pages_are_corrupt_pages(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 2)
    for page in range(2):
        tier.write(page, page_of(page)).wait()
    tier._slots[0].offset, tier._slots[1].offset = tier._slots[1].offset, tier._slots[0].offset
    for page in range(2):
        with pytest.raises(CorruptPageError):
            tier.read(page, new_host_buffer(PAGE)).wait()
    tier.close()


def test_a_page_whose_write_failed_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = reserved(tmp_path, 1)
    tier.write(0, page_of(1)).wait()

    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", failing)
        transfer = tier.write(0, page_of(2))
        with pytest.raises(SpillError, match="could not write"):
            transfer.wait()
    with pytest.raises(CorruptPageError):
        tier.read(0, new_host_buffer(PAGE)).wait()
    tier.write(0, page_of(3)).wait()
    assert value_of(tier, 0) == 3
    tier.close()


def test_a_transfer_starts_only_after_those_it_follows_ended_well(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 2)
    tier.write(1, page_of(7)).wait()
    frame = page_of(5)
    into_frame = tier.read(1, frame, after=[tier.write(0, frame)])
    into_frame.wait()
    assert (frame == 7).all()
    assert value_of(tier, 0) == 5
    broken = tier.read(1, frame, after=[EndedTransfer(SpillError(errno.EIO, "what it follows failed"))])
    with pytest.raises(SpillError, match="what it follows failed"):
        broken.wait()
    assert value_of(tier, 1) == 7
    tier.close()


def test_transfers_on_one_page_happen_in_the_order_they_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = reserved(tmp_path, 2)
    may_write = threading.Event()
    write = os.pwritev

    def held_back(*args: Any) -> int:
        assert may_write.wait(timeout=240)
        return write(*args)

    monkeypatch.setattr(os, "pwritev", held_back)
    first = tier.write(0, page_of(1))
    into = new_host_buffer(PAGE)
    read = tier.read(0, into)
    second = tier.write(0, page_of(2))
    time.sleep(0.05)
    assert not any(transfer.done() for transfer in (first, read, second))
    may_write.set()
    for transfer in (first, read, second):
        transfer.wait()
    assert (into == 1).all()
    assert value_of(tier, 0) == 2
    tier.close()


def test_many_transfers_that_follow_each_other_do_not_block_each_other(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 40)
    frame = page_of(0)
    last = None
    for page in range(40):
        last = tier.write(page, frame, after=() if last is None else (last,))
        last = tier.read(page, frame, after=(last,))
    assert last is not None
    last.wait()
    assert last.done()
    tier.close()


def test_a_thread_that_cannot_start_is_a_failed_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = reserved(tmp_path, 1)
    assert tier._threads is not None

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(tier._threads, "submit", refuse)
    transfer = tier.write(0, page_of(1))
    assert transfer.done()
    with pytest.raises(SpillError, match="can't start new thread"):
        transfer.wait()
    tier.close()


@pytest.mark.parametrize("shift", [1, 64])
def test_a_badly_aligned_tensor_goes_through_a_staging_buffer(tmp_path: Path, shift: int) -> None:
    tier = reserved(tmp_path, 1)
    source = new_host_buffer(2 * PAGE)[shift : shift + PAGE]
    source.copy_(torch.arange(PAGE) % 251)
    transfer = tier.write(0, source)
    image = source.clone()
    source.zero_()  # what is staged may change at once
    transfer.wait()
    into = new_host_buffer(2 * PAGE)[shift : shift + PAGE]
    read = tier.read(0, into)
    for _ in range(2):
        read.wait()
        assert torch.equal(into, image)
    tier.close()


def test_a_page_that_cannot_be_staged_is_a_failed_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(nbytes: int) -> Tensor:
        raise MemoryError(f"no {nbytes} bytes")

    tier = reserved(tmp_path, 1)
    odd = new_host_buffer(2 * PAGE)[1 : 1 + PAGE]
    monkeypatch.setattr(disk, "new_host_buffer", exhausted)
    for transfer in (tier.write(0, odd), tier.read(0, odd)):
        with pytest.raises(SpillError, match="could not stage page 0"):
            transfer.wait()
    tier.close()


def test_staging_buffers_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(nbytes: int) -> Tensor:
        made.append(nbytes)
        return new_host_buffer(nbytes)

    tier = reserved(tmp_path, 1)
    monkeypatch.setattr(disk, "new_host_buffer", counted)
    source = new_host_buffer(2 * PAGE)[1 : 1 + PAGE]
    for _ in range(20):
        tier.write(0, source).wait()
        tier.read(0, source).wait()
    assert len(made) <= 2
    tier.close()


def test_finishing_ends_transfers_that_nobody_knows_of_and_the_tier_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an interrupt between the start of a transfer and whoever was to wait for it."""
    tier = reserved(tmp_path, 2)
    write_page, ended = disk.write_page, []

    def slow(*args: Any) -> None:
        time.sleep(0.1)
        write_page(*args)
        ended.append(args)

    monkeypatch.setattr(disk, "write_page", slow)
    tier.write(0, page_of(7))
    tier._slots[0].last = None
    tier.finish()
    assert len(ended) == 1
    tier.write(1, page_of(8)).wait()
    assert (value_of(tier, 0), value_of(tier, 1)) == (7, 8)
    threads = threading.active_count()
    tier.close()
    assert threading.active_count() < threads


def test_close_ends_transfers_frees_all_and_may_be_called_again(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 5)
    frame = page_of(1)
    transfers = [tier.write(page, frame) for page in range(5)]
    tier.close()
    tier.close()
    assert all(transfer.done() for transfer in transfers)
    assert tier.file_nbytes == tier.usage.disk_nbytes == 0
    tier.reserve(0, PAGE)
    tier.write(0, page_of(9)).wait()
    assert value_of(tier, 0) == 9
    tier.close()


def test_a_dropped_tier_closes_its_file_at_once(tmp_path: Path) -> None:
    tier = reserved(tmp_path, 2)
    tier.write(0, page_of(1))
    file = weakref.ref(tier._file)  # type: ignore[arg-type]
    del tier
    assert file() is None


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = reserved(tmp_path, 1)
    assert str(tmp_path) in tier.describe()
    assert tier._file is not None
    monkeypatch.setattr(tier._file, "is_direct", False)
    monkeypatch.setattr(tier._file, "is_nameless", False)
    assert "through the page cache (uses RAM beyond the budget)" in tier.describe()
    assert "a killed process would leave behind" in tier.describe()
    tier.close()


@settings(max_examples=20, deadline=None)
@given(
    page_nbytes=st.sampled_from([8, 4096, 5000, 16384]),
    moves=st.lists(st.tuples(st.sampled_from("wrfn"), st.integers(0, 5), st.integers(0, 255)), max_size=40),
)
def test_any_sequence_of_transfers_equals_a_dict(
    tmp_path_factory: pytest.TempPathFactory, page_nbytes: int, moves: Sequence[tuple[str, int, int]]
) -> None:
    tier = DiskTier(page_nbytes, tmp_path_factory.getbasetemp())
    model: dict[int, int | None] = {}
    kept: list[Tensor] = []
    under_way = []
    for move, page, value in moves:
        if move == "n" and page not in model:
            tier.reserve(page, page_nbytes)
            model[page] = None
        elif move == "f" and page in model:
            for transfer in under_way:
                transfer.wait()
            tier.release(page)
            del model[page]
        elif move == "w" and page in model:
            kept.append(page_of(value, page_nbytes))
            under_way.append(tier.write(page, kept[-1]))
            model[page] = value
        elif move == "r" and model.get(page) is not None:
            into = new_host_buffer(page_nbytes)
            tier.read(page, into).wait()
            assert (into == model[page]).all()
    assert tier.usage.disk_nbytes == len(model) * page_nbytes
    tier.close()


class StruckCalls:
    """`os.preadv` and `os.pwritev`, of which the nth call of all fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
        self.nth, self.num_calls = nth, 0
        for name in ("preadv", "pwritev"):
            monkeypatch.setattr(os, name, self.struck(getattr(os, name)))

    def struck(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(*args: object) -> int:
            number, self.num_calls = self.num_calls, self.num_calls + 1
            if number == self.nth:
                raise OSError(errno.EIO, "told to fail")
            return real(*args)

        return call


def outcome_of(tier: DiskTier, verb: str, page: int) -> str:
    frame = page_of(page)
    try:
        getattr(tier, verb)(page, frame).wait()
    except CorruptPageError:
        return "corrupt"
    except SpillError as error:
        return f"failed with {error.errno}"
    assert (frame == page).all()
    return "well"


def test_whichever_call_of_the_system_fails_the_waiter_learns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = [(verb, page) for page in range(4) for verb in ("write", "read", "write", "read")]
    for nth in range(len(moves)):
        tier = reserved(tmp_path, 4)
        with monkeypatch.context() as patched:
            calls = StruckCalls(patched, nth)
            outcomes = [outcome_of(tier, verb, page) for verb, page in moves]
        tier.close()
        expected = ["well"] * len(moves)
        expected[nth] = f"failed with {errno.EIO}"
        if moves[nth][0] == "write":
            expected[nth + 1] = "corrupt"
            assert calls.num_calls == len(moves)
        assert outcomes == expected
