"""Pinned memory: few allocations, every byte charged, given back, and a word where the system pins nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedopt.paging.budget import Ledger
from pagedopt.tiers.buffers import new_host_buffer
from pagedopt.tiers.slabs import MAX_SLAB_NBYTES, PinnedMemory, Room, Slabs

PAGE = 4096


def slabs_of(ledger: Ledger, page_nbytes: int = PAGE, made: list[int] | None = None) -> Slabs:
    def allocate(nbytes: int) -> torch.Tensor:
        if made is not None:
            made.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    return Slabs(page_nbytes, ledger.charge, ledger.refund, allocate=allocate)


@given(
    page_kib=st.sampled_from((4, 12, 64)),
    limit_kib=st.integers(0, 4096),
    moves=st.lists(st.integers(0, 100), max_size=200),
)
def test_rooms_never_overlap_and_never_exceed_the_budget(page_kib: int, limit_kib: int, moves: list[int]) -> None:
    ledger = Ledger(limit_kib << 10)
    slabs = slabs_of(ledger, page_kib << 10)
    held: list[tuple[Room, int]] = []
    for number, move in enumerate(moves):
        if move < 60:
            room = slabs.take()
            if room is None:
                assert limit_kib << 10 < ledger.charged + (1 << ((page_kib << 10) - 1).bit_length())
                continue
            slabs.memory(room).fill_(number % 251)
            held.append((room, number % 251))
        elif held:
            room, value = held.pop(move % len(held))
            assert bool((slabs.memory(room) == value).all())
            slabs.give(room)
        assert slabs.nbytes == ledger.charged <= limit_kib << 10
    for room, value in held:
        assert bool((slabs.memory(room) == value).all())
        slabs.give(room)
    assert ledger.charged == slabs.num_slabs == 0


def test_thousands_of_pages_are_a_few_allocations_of_at_most_64_mib() -> None:
    slabs = slabs_of(Ledger(None))
    rooms = [slabs.take() for _ in range(100_000)]
    assert None not in rooms
    assert slabs.num_slabs < 25
    assert all(slab.nbytes <= MAX_SLAB_NBYTES for slab in slabs._slabs)


def test_nothing_is_allocated_before_a_page_of_the_slab_is_needed() -> None:
    made: list[int] = []
    slabs = slabs_of(Ledger(None), made=made)
    rooms = [slabs.take() for _ in range(3)]
    assert not made
    assert rooms[0] is not None
    slabs.memory(rooms[0])
    assert made == [PAGE]


def test_memory_goes_back_after_the_copies_in_it_and_with_its_last_page() -> None:
    done: list[str] = []
    slabs = Slabs(
        PAGE,
        lambda _: True,
        lambda nbytes: done.append(f"refund {nbytes}"),
        finish=lambda: done.append("finish"),
        give_back=lambda: done.append("give back"),
    )
    room = slabs.take()
    assert room is not None
    slabs.memory(room)
    slabs.give(room)
    assert done == ["finish", "give back", f"refund {PAGE}"]


def test_where_pinning_fails_memory_is_pageable_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(nbytes: int, **options: object) -> torch.Tensor:
        assert options["pin_memory"]
        asked.append(nbytes)
        raise RuntimeError("CUDA error: out of memory\nand a long explanation")

    monkeypatch.setattr("pagedopt.tiers.slabs.torch.empty", refuse)
    pinned = PinnedMemory()
    with pytest.warns(UserWarning, match=r"pins no 8 KiB of RAM \(CUDA error: out of memory\), so pages go through"):
        memory = pinned(8192)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pinned(8192).is_pinned()
    assert asked == [8192]
    assert memory.numel() == 8192


def test_a_machine_without_an_accelerator_has_no_pinned_memory_to_give_back() -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    PinnedMemory().give_back()
    assert not new_host_buffer(PAGE).is_pinned()
