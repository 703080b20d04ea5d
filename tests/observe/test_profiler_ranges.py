"""The ranges of torch's profiler: there under their names, and nothing where nobody profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile
from watched import small_optimizer

from pagedopt import ranges

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torch.*")  # what a profiler says about this machine


def test_a_profile_has_the_five_ranges(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path, num_pages=24)
    optimizer.step()

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            optimizer.step()

    counts = {event.key: event.count for event in profiled.key_averages()}
    names = {f"pagedopt::{name}" for name in ("step", "update", "read", "write")}
    assert names <= counts.keys()
    assert counts["pagedopt::step"] == 3
    assert counts["pagedopt::update"] == 3 * optimizer.memory_stats().pages
    assert counts["pagedopt::read"] > 3
    assert (optimizer.paging_stats().stalls > 0) >= ("pagedopt::wait" in counts)


def test_a_wait_is_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagedopt.tiers.disk import _ThreadTransfer

    monkeypatch.setattr(_ThreadTransfer, "done", lambda _: False)  # then every pin of a page that was read waits
    optimizer = small_optimizer(tmp_path)
    optimizer.step()

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        optimizer.step()

    assert "pagedopt::wait" in {event.key for event in profiled.key_averages()}


def test_a_range_is_nothing_while_nobody_profiles(tmp_path: Path) -> None:
    assert ranges.profiled("step") is ranges.profiled("update")
