"""Statistics of a step are of that step, and together they are the statistics."""

from __future__ import annotations

from pathlib import Path

from watched import PAGE_NBYTES, small_optimizer

from pagedopt import PagingStats, step_in_backward


def test_the_statistics_of_all_steps_add_up_to_those_since_the_start(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    total = PagingStats()
    for _ in range(4):
        optimizer.step()
        total += optimizer.step_stats()

    stats = optimizer.paging_stats()
    assert total.stalled_seconds > 0 or total.stalls == 0
    assert abs(total.stalled_seconds - stats.stalled_seconds) < 1e-9
    assert total - stats == PagingStats(stalled_seconds=total.stalled_seconds - stats.stalled_seconds)


def test_a_step_pins_each_page_once_and_counts_nothing_of_what_is_around_it(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    pages = 0
    for _ in range(3):
        optimizer.step()
        optimizer.state_dict()  # pins every page too
        stats, pages = optimizer.step_stats(), optimizer.memory_stats().pages
        assert stats.hits + stats.faults == pages
        assert stats.bytes_written["disk"] <= pages * PAGE_NBYTES

    assert optimizer.paging_stats().hits + optimizer.paging_stats().faults == 6 * pages


def test_a_reset_does_not_change_what_the_last_step_did(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    optimizer.step()
    stats = optimizer.step_stats()
    optimizer.reset_paging_stats()

    assert optimizer.step_stats() == stats
    assert optimizer.paging_stats() == PagingStats()
    optimizer.step()
    assert optimizer.step_stats().hits + optimizer.step_stats().faults == optimizer.memory_stats().pages


def test_an_optimizer_that_never_stepped_did_nothing(tmp_path: Path) -> None:
    assert small_optimizer(tmp_path).step_stats() == PagingStats()


def test_a_step_that_was_made_in_backward_counts_what_backward_did(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    (param,) = optimizer.param_groups[0]["params"]
    with step_in_backward(optimizer):
        for _ in range(2):
            param.sum().backward()
            optimizer.step()

    assert optimizer.step_stats().hits + optimizer.step_stats().faults == optimizer.memory_stats().pages


def test_statistics_print_as_what_makes_them_again() -> None:
    stats = PagingStats(faults=3, bytes_read={"host": 1, "disk": 2}, stalled_seconds=0.5)

    assert eval(repr(stats)) == stats
    assert "bytes_read={'host': 1, 'disk': 2}" in repr(stats)
