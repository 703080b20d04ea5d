"""Parameters -> segments -> pages: where a segment ends, against its definition, and what finding that costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedopt import layout
from pagedopt.codecs.base import StateFormat
from pagedopt.layout import Grid, fit, grid_for, segment_nbytes

CAPACITY = 1 << 14

shapes = st.one_of(
    st.tuples(st.integers(1, 20_000)),
    st.tuples(st.integers(1, 60), st.sampled_from([1, 63, 64, 200, 255, 256, 257, 512, 700, 1024, 4000])),
)


def nbytes(grid: Grid, state_format: StateFormat, first: int, stop: int) -> int:
    return segment_nbytes(state_format, grid.start(stop) - grid.start(first), stop - first)


@given(shapes, st.sampled_from(StateFormat), st.floats(0, 1), st.integers(0, CAPACITY + 100))
def test_a_segment_is_the_longest_that_fits(
    shape: tuple[int, ...], state_format: StateFormat, where: float, offset: int
) -> None:
    grid = grid_for(shape, state_format)
    first = round(where * (grid.num_blocks - 1))
    segment = fit(grid, state_format, first, offset, CAPACITY)
    room = CAPACITY - -(-offset // 64) * 64
    if segment is None:
        assert nbytes(grid, state_format, first, first + 1) > room
        return
    stop = segment.stop_block
    assert first < stop <= grid.num_blocks
    assert segment.nbytes == nbytes(grid, state_format, first, stop) <= room
    assert stop == grid.num_blocks or nbytes(grid, state_format, first, stop + 1) > room


@pytest.mark.parametrize("shape", [(1 << 30,), (40_000, 28_672), (40_000, 28_700)])
@pytest.mark.parametrize("state_format", StateFormat)
def test_what_one_page_was_measured_for_is_not_measured_for_the_next(
    shape: tuple[int, ...], state_format: StateFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counted(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        return segment_nbytes(*arguments)

    monkeypatch.setattr(layout, "segment_nbytes", counted)
    layout._num_fitting.cache_clear()
    grid, block, num_pages = grid_for(shape, state_format), 0, 0
    while block < grid.num_blocks:
        segment = fit(grid, state_format, block, 0, 1 << 20)
        assert segment is not None
        block, num_pages = segment.stop_block, num_pages + 1
    in_a_row = grid.blocks_per_row if grid.num_rows > 1 and grid.row_width % 256 else 1
    assert num_pages > 1000
    assert calls <= 25 * in_a_row
