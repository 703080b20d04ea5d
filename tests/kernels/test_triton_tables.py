"""The tables of a page and a step: arithmetic on the CPU, the same with Triton and without."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from page_builder import Pages, operands_of, scalars

from pagedopt.codecs.base import BLOCK, StateFormat
from pagedopt.codecs.blockwise import Blocks
from pagedopt.kernels.args import Column
from pagedopt.kernels.triton_tables import (
    DTYPES,
    ENDLESS,
    NO_GRAD,
    TILE_BLOCKS,
    dtypes_of,
    page_tables,
    step_tables,
)

CPU = torch.device("cpu")
F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat
FIRST_TILE, BLOCKS_PER_ROW, ROW_WIDTH, FIRST_COLUMN, NUM_BLOCKS = range(8, 13)

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 5000)),
        st.tuples(st.integers(1, 40), st.integers(1, 700)),
        st.tuples(st.integers(1, 8), st.sampled_from([256, 512, 300, 320])),
    ),
    min_size=1,
    max_size=6,
)


def starts_of_blocks(row: list[int]) -> list[int]:
    """Return where the device finds the blocks of a segment, counted from its first value."""
    blocks = [divmod(row[FIRST_COLUMN] + block, row[BLOCKS_PER_ROW]) for block in range(row[NUM_BLOCKS])]
    return [r * row[ROW_WIDTH] + (column - row[FIRST_COLUMN]) * BLOCK for r, column in blocks]


@given(
    shapes=SHAPES,
    formats=st.lists(st.sampled_from(StateFormat), min_size=6, max_size=6),
    capacity=st.sampled_from([3200, 4096]),
)
def test_the_device_finds_every_block_of_every_segment_where_the_layout_put_it(shapes, formats, capacity):
    pages = Pages(shapes, formats[: len(shapes)], capacity=capacity)
    for table, places in zip(pages.tables(), pages.places, strict=True):
        tables = page_tables(table, CPU)
        tiles = tables.tiles.tolist()
        for index, (row, place) in enumerate(zip(tables.segments.tolist(), places, strict=True)):
            segment, blocks = place.segment, range(place.segment.first_block, place.segment.stop_block)
            assert starts_of_blocks(row) == [place.grid.start(block) - segment.start for block in blocks]
            assert tiles.count(index) == -(-len(blocks) // TILE_BLOCKS)
            assert tiles.index(index) == row[FIRST_TILE]
            assert tiles == sorted(tiles)


@given(start=st.integers(0, 20).map(lambda block: block * BLOCK), numel=st.integers(1, 4000))
def test_blocks_that_follow_one_another_are_one_row_without_end(start, numel):
    """Whole tiles of such segments are read without masks."""
    for width in (256, 1024, start + numel):
        row = [0] * len(Column)
        row[Column.START], row[Column.NUMEL], row[Column.ROW_WIDTH], row[Column.FORMAT] = start, numel, width, BLOCKWISE
        (ours,) = page_tables(torch.tensor([row]), CPU).segments.tolist()
        assert (ours[BLOCKS_PER_ROW], ours[FIRST_COLUMN]) == (ENDLESS, 0)
        assert ours[NUM_BLOCKS] == len(Blocks(start, numel, width))


def test_a_page_knows_its_formats_and_operands():
    pages = Pages([(300,), (300,), (300,)], [F32, TENSORWISE, F32])
    tables = page_tables(pages.tables()[0], CPU)
    assert (tables.formats, tables.is_tensorwise) == (1 << F32 | 1 << TENSORWISE, True)
    assert tables.residents == {0, 1, 2}


def test_a_step_holds_addresses_rows_and_pairs_of_dtypes():
    params = [torch.zeros(3, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    grads = [torch.zeros(3, dtype=torch.bfloat16), None, torch.zeros(3)]
    step = step_tables(operands_of(params, grads, [scalars(1), scalars(2)], [1, 0, 0]), CPU)
    pairs = [1, NO_GRAD, 6]
    assert step.operands.tolist() == [
        [params[0].data_ptr(), grads[0].data_ptr(), 1, pairs[0]],
        [params[1].data_ptr(), 0, 0, pairs[1]],
        [params[2].data_ptr(), grads[2].data_ptr(), 0, pairs[2]],
    ]
    assert torch.equal(step.scalars, torch.tensor([scalars(1), scalars(2)]))
    assert [dtypes_of(pair) for pair in (1, 6)] == [(DTYPES[0], torch.bfloat16), (DTYPES[2], torch.float32)]


def test_a_page_needs_a_launch_for_each_live_pair_of_its_own_operands():
    params = [torch.zeros(300, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    page = page_tables(Pages([(300,), (300,)], [F32, F32]).tables()[0], CPU)
    grads = [torch.zeros(300)] * 3
    step = step_tables(operands_of(params, grads, [scalars(1)]), CPU)
    assert step.live_pairs_of(page) == [0, 3]
    step = step_tables(operands_of(params, [None, *grads[1:]], [scalars(1)]), CPU)
    assert step.live_pairs_of(page) == [3]
    step = step_tables(operands_of(params, [None, None, None], [scalars(1)]), CPU)
    assert step.live_pairs_of(page) == []
