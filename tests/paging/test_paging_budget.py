"""The ledger, and what an automatic budget counts as free."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from pagedopt.paging import budget
from pagedopt.paging.budget import Ledger, automatic_device_nbytes, automatic_host_nbytes


def test_a_ledger_never_exceeds_its_limit() -> None:
    ledger = Ledger(10)
    assert ledger.charge(6)
    assert not ledger.charge(5)
    assert ledger.charged == 6
    assert ledger.charge(4)
    ledger.refund(10)
    assert ledger.charge(10)


def test_an_unlimited_ledger_takes_everything() -> None:
    ledger = Ledger(None)
    assert ledger.charge(1 << 60)
    assert ledger.known_limit is None


def test_an_automatic_limit_is_measured_once_and_not_before_it_is_needed() -> None:
    asked: list[int] = []

    def limit() -> int:
        asked.append(100)
        return 100

    ledger = Ledger(limit)
    assert ledger.known_limit is None
    assert not asked
    assert ledger.charge(60)
    assert not ledger.charge(60)
    assert ledger.known_limit == 100
    assert len(asked) == 1


def make_group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_every_control_group_above_the_process_binds(tmp_path: Path) -> None:
    make_group(tmp_path, "a", memory__max="1000\n", memory__current="900\n", memory__stat="inactive_file 50\nanon 1\n")
    make_group(tmp_path, "a/b", memory__max="max\n", memory__current="800\n")
    make_group(tmp_path, "a/b/c", memory__max="700\n", memory__current="100\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b/c\n")
    assert list(budget._cgroup_free(tmp_path, membership)) == [600, 150]


def test_version_1_control_groups_bind_too(tmp_path: Path) -> None:
    make_group(tmp_path, "memory/x", memory__limit_in_bytes="5000", memory__usage_in_bytes="4000")
    membership = tmp_path / "membership"
    membership.write_text("3:cpuset:/x\n4:memory:/x\n0::/\n")
    assert list(budget._cgroup_free(tmp_path, membership)) == [1000]


def test_no_control_groups_bind_nothing(tmp_path: Path) -> None:
    assert list(budget._cgroup_free(tmp_path, tmp_path / "missing")) == []


def test_the_automatic_host_budget_leaves_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 100 << 30

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(budget, "_cgroup_free", lambda *_: iter([10 << 30]))
    assert automatic_host_nbytes() == 8 << 30
    Memory.available = 1 << 30
    assert automatic_host_nbytes() == 0


def test_a_device_that_does_not_tell_its_memory_gets_no_automatic_budget() -> None:
    assert automatic_device_nbytes(torch.device("meta")) == 0
