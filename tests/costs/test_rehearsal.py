"""A rehearsal counts what training counts, to the byte, in every place and every part of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pagedopt
from oracle import give, random_grads, random_params
from pagedopt.costs import empty
from pagedopt.costs.rehearsal import STEADY_STEP, Account, rehearse
from pagedopt.costs.weights import Weight
from pagedopt.paging.automatic import Reading
from pagedopt.paging.budget import Ledger
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.pager import Pager, accelerator_pager
from pagedopt.tiers.split import SplitTier
from pagedopt.tiers.streams import InOrder

CPU = torch.device("cpu")
SHAPES = [(300, 257), (4096,), (4095,), (70, 64, 3), (3,), (), (0,), (513, 300), (64, 32)]

KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "8": (pagedopt.PagedAdamW8bit, {}),
    "8, all": (pagedopt.PagedAdamW8bit, {"min_8bit_size": 0}),
    "32": (pagedopt.PagedAdamW32bit, {}),
    "32, amsgrad": (pagedopt.PagedAdamW, {"amsgrad": True}),
    "8, tensor-wise": (pagedopt.PagedAdamW8bit, {"block_wise": False}),
}


def weights(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Weight]:
    return [Weight(str(number), shape, dtype) for number, shape in enumerate(shapes)]


def assert_same(account: Account, optimizer: Any, pager: Pager, folder: Path) -> None:
    """Train, save and load for real, and compare with what was told."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    device_pager = pager.on(CPU)
    assert device_pager.memory.frame_nbytes == account.construction.frame_nbytes == 0
    for step in range(1, STEADY_STEP + 1):
        optimizer.reset_paging_stats()
        give(params, random_grads(params, seed=step))
        optimizer.step()
        if step == 1:
            assert_phase(account.first_step, device_pager, pager._host.charged)
    assert_phase(account.steady_step, device_pager, pager._host.charged)
    said, memory = optimizer.paging_stats(), optimizer.memory_stats()
    assert (memory.pages, memory.resident_pages) == (account.memory.pages, account.memory.resident_pages)
    assert memory.disk_bytes == account.memory.disk_bytes
    for name in ("faults", "hits", "prefetches", "evictions", "bytes_read", "bytes_written"):
        assert getattr(said, name) == getattr(account.paging, name), name
    assert sum(record.nbytes for record in optimizer._store.records.values()) == account.state_nbytes

    optimizer.reset_paging_stats()
    pagedopt.save(optimizer, folder)
    assert_phase(account.save, device_pager, pager._host.charged)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) == account.checkpoint_nbytes


def assert_phase(phase: Any, pager: DevicePager, ram_nbytes: int) -> None:
    memory, stats, tier = pager.memory, pager.stats, pager._residency.tier
    disk = tier._tiers[1] if isinstance(tier, SplitTier) else tier
    assert phase.ram_nbytes == ram_nbytes
    assert phase.frame_nbytes == memory.frame_nbytes
    assert phase.host_nbytes == memory.host_nbytes
    assert phase.disk_nbytes == memory.disk_nbytes
    assert phase.file_nbytes == (0 if disk is None else disk.file_nbytes)
    assert phase.read == stats.bytes_read
    assert phase.written == stats.bytes_written


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("pages", [1.0, 1.5, 3.0, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rehearsal_counts_what_training_counts(kind: str, pages: float, depth: int, tmp_path: Path) -> None:
    """For budgets of one working set, and of more, and none."""
    optimizer_class, arguments = KINDS[kind]
    budget = int(pages * (1 + 2 * depth) * (64 << 10))
    config = PagingConfig.parse(page_size="64KiB", max_host_memory=budget, spill_dir=tmp_path, prefetch_depth=depth)

    account = rehearse(weights(SHAPES), optimizer_class, config, CPU, arguments)

    pager = Pager.from_config(config)
    optimizer = optimizer_class(random_params(SHAPES), pager=pager, **arguments)
    assert_same(account, optimizer, pager, tmp_path / "checkpoint")
    assert optimizer.memory_stats().host_bytes == account.memory.host_bytes
    loaded_pager = Pager.from_config(config)
    loaded = optimizer_class(random_params(SHAPES), pager=loaded_pager, **arguments)
    pagedopt.load(loaded, tmp_path / "checkpoint")
    assert_phase(account.load, loaded_pager.on(CPU), loaded_pager._host.charged)


@given(
    shapes=st.lists(st.lists(st.integers(0, 300), max_size=2).map(tuple), min_size=1, max_size=12),
    kind=st.sampled_from(sorted(KINDS)),
    page_nbytes=st.sampled_from([64 << 10, 72 << 10, 128 << 10]),
    num_frames=st.integers(3, 12),
)
def test_whatever_the_shapes_and_budgets_a_rehearsal_counts_what_training_counts(
    shapes: list[tuple[int, ...]], kind: str, page_nbytes: int, num_frames: int, tmp_path_factory: Any
) -> None:
    optimizer_class, arguments = KINDS[kind]
    config = PagingConfig.parse(page_size=page_nbytes, max_host_memory=num_frames * page_nbytes, prefetch_depth=1)

    account = rehearse(weights(shapes), optimizer_class, config, CPU, arguments)

    pager = Pager.from_config(config)
    assert_same(
        account,
        optimizer_class(random_params(shapes), pager=pager, **arguments),
        pager,
        tmp_path_factory.mktemp("c") / "x",
    )


class AcceleratorsTiers(Pager):
    """Frames of their own budget, RAM and disk behind them: what an accelerator has, for parameters in RAM."""

    def __init__(self, planned: PagingConfig) -> None:
        super().__init__()
        self._planned = planned
        self._host = Ledger(planned.max_host_memory or None)

    def _new_device_pager(self, device: torch.device) -> DevicePager:
        return accelerator_pager(self._planned, device, self._host, InOrder())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("gpu_pages", "host_pages"), [(5, 2), (5, 40), (7, 64), (9, 1000), (0, 1)])
def test_a_rehearsal_counts_what_an_accelerators_pager_counts(
    kind: str, gpu_pages: int, host_pages: int, tmp_path: Path
) -> None:
    optimizer_class, arguments = KINDS[kind]
    page_nbytes = 64 << 10
    config = PagingConfig(page_nbytes, gpu_pages * page_nbytes, host_pages * page_nbytes, tmp_path, 2)

    account = rehearse(weights(SHAPES), optimizer_class, config, torch.device("cuda"), arguments)

    pager = AcceleratorsTiers(config)
    optimizer = optimizer_class(random_params(SHAPES), pager=pager, **arguments)
    assert_same(account, optimizer, pager, tmp_path / "checkpoint")


def test_a_resident_optimizer_moves_nothing() -> None:
    account = rehearse(weights(SHAPES), pagedopt.AdamW8bit, None, CPU, {})

    assert account.steady_step.moved_nbytes == account.steady_step.file_nbytes == 0
    assert account.steady_step.frame_nbytes == account.num_pages * account.page_nbytes


def test_options_of_a_group_hold() -> None:
    plain = rehearse(weights([(512, 512)]), pagedopt.PagedAdamW8bit, PagingConfig.resident(), CPU, {})
    kept = Weight("table", (512, 512), options=(("optim_bits", 32),))
    in_32_bits = rehearse([kept], pagedopt.PagedAdamW8bit, PagingConfig.resident(), CPU, {})

    assert [values.state_format for values in plain.values] == ["blockwise8"]
    assert [values.state_format for values in in_32_bits.values] == ["float32"]
    assert in_32_bits.state_nbytes == 8 * 512 * 512


def test_a_rehearsal_makes_no_tensor_with_memory() -> None:
    """A model a thousand times the machine's memory is no trouble."""
    account = rehearse(
        weights([(1 << 20, 1 << 22)], torch.bfloat16),
        pagedopt.PagedAdamW8bit,
        PagingConfig.parse(page_size="64GiB", max_gpu_memory="4TiB", max_host_memory="1TiB"),
        torch.device("cuda"),
        {},
    )

    assert account.steady_step.disk_nbytes > 1 << 42


def test_a_budget_too_small_is_the_error_that_training_would_raise() -> None:
    config = PagingConfig.parse(page_size="64KiB", max_gpu_memory="64KiB")
    with pytest.raises(pagedopt.BudgetError, match=r"max_gpu_memory of 65536 bytes .* at least 327680 bytes"):
        rehearse(weights(SHAPES), pagedopt.PagedAdamW8bit, config, torch.device("cuda"), {})


@given(num_pages=st.integers(1, 60), num_frames=st.integers(7, 70), depth=st.integers(0, 3))
def test_a_steady_step_moves_what_is_not_resident_and_at_most_a_working_set_more(
    num_pages: int, num_frames: int, depth: int
) -> None:
    page_nbytes = 64 << 10
    config = PagingConfig(page_nbytes, None, num_frames * page_nbytes, None, depth)
    whole = Weight("w", (num_pages * page_nbytes // 8,))

    account = rehearse([whole], pagedopt.PagedAdamW32bit, config, CPU, {})

    assert account.num_pages == num_pages
    missing = max(num_pages - num_frames, 0)
    for moved in (account.steady_step.read["disk"], account.steady_step.written["disk"]):
        assert missing <= moved // page_nbytes <= (missing + config.working_set if missing else 0)


def test_an_automatic_budget_of_an_accelerator_is_what_its_allocator_would_leave_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8 GiB, of which 1 GiB was in use at the worst and 512 MiB are kept free."""
    monkeypatch.setattr(empty, "_check_is_here", lambda device: None)
    monkeypatch.setattr(empty, "can_be_read", lambda device: True)
    monkeypatch.setattr(empty, "AllocatorReader", lambda device: lambda: Reading(8 << 30, 1 << 30))
    config = PagingConfig.parse(max_host_memory=0)

    account = rehearse(weights([(1 << 33,)]), pagedopt.PagedAdamW8bit, config, torch.device("cuda"), {})

    assert account.budget_nbytes == 13 << 29
    assert account.steady_step.frame_nbytes == account.budget_nbytes // account.page_nbytes * account.page_nbytes
