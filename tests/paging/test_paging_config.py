"""What may be said about paging, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from pagedopt.errors import BudgetError
from pagedopt.paging.config import PagingConfig

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
MIB = 1 << 20


@pytest.mark.parametrize("unset", [None, "", "None", "none", "auto"])
def test_unset_is_automatic_everywhere(unset: str | None) -> None:
    config = PagingConfig.parse(
        page_size=unset, max_gpu_memory=unset, max_host_memory=unset, spill_dir=unset, prefetch_depth=unset
    )
    assert config == PagingConfig()
    assert config.prefetch_depth == 2
    assert config.working_set == 5


def test_text_says_the_same_as_numbers(tmp_path: Path) -> None:
    text = PagingConfig.parse(
        page_size="1MiB", max_gpu_memory="8MiB", max_host_memory="0", spill_dir=str(tmp_path), prefetch_depth="3"
    )
    numbers = PagingConfig.parse(
        page_size=MIB, max_gpu_memory=8 * MIB, max_host_memory=0, spill_dir=tmp_path, prefetch_depth=3
    )
    assert text == numbers
    assert hash(text) == hash(numbers)


@pytest.mark.parametrize(
    ("asked", "given"), [(1, 64 << 10), (65537, 65536 + 4096), ("100000", 102400), ("4MiB", 4 * MIB)]
)
def test_a_page_size_is_rounded_up_to_whole_blocks_and_at_least_64_kib(asked: int | str, given: int) -> None:
    assert PagingConfig.parse(page_size=asked).page_nbytes(CPU) == given


@pytest.mark.parametrize(
    ("budget", "page_nbytes"),
    [
        (None, 16 * MIB),
        (1 << 40, 16 * MIB),
        (256 * MIB, 16 * MIB),
        (256 * MIB - 1, 8 * MIB),
        (MIB, 64 << 10),
        (1, 64 << 10),
    ],
)
def test_an_automatic_page_is_a_sixteenth_of_an_explicit_budget(budget: int | None, page_nbytes: int) -> None:
    assert PagingConfig(max_host_memory=budget).page_nbytes(CPU) == page_nbytes
    assert PagingConfig(max_gpu_memory=budget).page_nbytes(GPU) == page_nbytes
    assert PagingConfig(max_gpu_memory=budget).page_nbytes(CPU) == 16 * MIB


def test_frames_in_ram_are_huge_pages_as_soon_as_two_working_sets_of_them_fit() -> None:
    sizes = {budget: PagingConfig(max_host_memory=budget * MIB).page_nbytes(CPU) for budget in (19, 20, 64)}
    assert sizes == {19: MIB, 20: 2 * MIB, 64: 4 * MIB}
    assert PagingConfig(max_gpu_memory=20 * MIB).page_nbytes(GPU) == MIB


def test_pages_that_never_leave_an_accelerator_are_large() -> None:
    """There a page is nothing but a launch; in RAM it is also what its threads are given at a time."""
    resident = PagingConfig(max_gpu_memory=0, max_host_memory=0)
    assert (resident.page_nbytes(GPU), resident.page_nbytes(CPU)) == (64 * MIB, 16 * MIB)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("page_size", 0, ValueError),
        ("page_size", -1, ValueError),
        ("page_size", "many", ValueError),
        ("page_size", 1.5, TypeError),
        ("max_gpu_memory", -5, ValueError),
        ("max_gpu_memory", "5 apples", ValueError),
        ("max_host_memory", "-1", ValueError),
        ("max_host_memory", [], TypeError),
        ("max_host_memory", True, TypeError),
        ("prefetch_depth", -1, ValueError),
        ("prefetch_depth", "two", ValueError),
        ("prefetch_depth", 10**9, ValueError),
        ("prefetch_depth", 2.0, TypeError),
        ("prefetch_depth", True, TypeError),
        ("spill_dir", "/no/such/folder", ValueError),
        ("spill_dir", 7, TypeError),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_value(argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument) as caught:
        PagingConfig.parse(**{argument: value})  # type: ignore[arg-type]
    assert str(value) in str(caught.value)


def test_a_spill_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="spill_dir must be an existing folder"):
        PagingConfig.parse(spill_dir=file)


def test_a_relative_spill_dir_does_not_move_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PagingConfig.parse(spill_dir=".").spill_dir == tmp_path


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
def test_a_budget_below_the_working_set_says_the_smallest_that_works(depth: int) -> None:
    smallest = (1 + 2 * depth) * (64 << 10)
    PagingConfig.parse(page_size="64KiB", max_host_memory=smallest, prefetch_depth=depth).check_budget(CPU)
    short = PagingConfig.parse(page_size="64KiB", max_host_memory=smallest - 1, prefetch_depth=depth)
    with pytest.raises(BudgetError, match=f"set max_host_memory to at least {smallest} bytes"):
        short.check_budget(CPU)
    short.check_budget(GPU)
    with pytest.raises(ValueError, match="max_gpu_memory"):
        PagingConfig.parse(page_size="64KiB", max_gpu_memory=smallest - 1, prefetch_depth=depth).check_budget(GPU)


def test_resident_has_no_budget() -> None:
    config = PagingConfig.resident()
    assert config.max_gpu_memory == config.max_host_memory == 0
    config.check_budget(CPU)


def test_a_config_survives_pickle_and_deepcopy(tmp_path: Path) -> None:
    config = PagingConfig.parse(max_host_memory="8MiB", spill_dir=tmp_path)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
