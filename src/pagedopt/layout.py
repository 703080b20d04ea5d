"""Parameters -> segments -> pages. Arithmetic only: no tensor, no memory, no policy.

    values of one parameter   |  row 0                     |  row 1                     | ...
    blocks (at most 256)      |  b0   |  b1   |  b2 (short)|  b3   |  b4   |  b5 (short)| ...
    segments                  |------ page 4 ------|--------------- page 5 -------------| ...

    one page                  [ codes m | codes v | absmax m | absmax v ][ next segment ... ][ free ]

A segment is a run of whole blocks of one parameter. Its arrays lie side by side in its page, each on a 64-byte
boundary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from pagedopt.codecs.base import BLOCK, FIELDS, NARROW_ROW, Per, StateFormat

ARRAY_ALIGNMENT = 64
"""Bytes: one cache line and one AVX-512 vector, so no array of a page shares either with its neighbour."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one parameter: `numel` values in rows of `row_width`, each row cut into blocks of at most 256."""

    numel: int
    row_width: int

    @property
    def num_rows(self) -> int:
        return self.numel // self.row_width if self.numel else 0

    @property
    def blocks_per_row(self) -> int:
        return -(-self.row_width // BLOCK)

    @property
    def num_blocks(self) -> int:
        return self.num_rows * self.blocks_per_row

    def start(self, block: int) -> int:
        """Return the index of the first value of `block` (`numel` for the block after the last)."""
        row, column = divmod(block, self.blocks_per_row)
        return row * self.row_width + column * BLOCK

    def block(self, value: int) -> int:
        """Return the block that `value` is in."""
        row, column = divmod(value, self.row_width)
        return row * self.blocks_per_row + column // BLOCK

    def span(self, first_block: int, stop_block: int) -> Span:
        """Return the span of these blocks."""
        return Span(self.start(first_block), self.start(stop_block), first_block, stop_block)

    def covering(self, start: int, stop: int) -> Span:
        """Return the shortest span that has the values [start, stop), of which there must be one."""
        return self.span(self.block(start), self.block(stop - 1) + 1)


def grid_of(shape: tuple[int, ...], numel: int, state_format: StateFormat) -> Grid:
    """Return the grid of a parameter of this global `shape` of which `numel` values (whole rows) are here.

    Only block-wise state has rows; 0- and 1-dimensional parameters and those with narrow rows are one row.
    """
    width = 1
    for size in shape[1:]:
        width *= size
    by_rows = state_format is StateFormat.BLOCKWISE8 and len(shape) > 1 and width >= NARROW_ROW and numel % width == 0
    return Grid(numel, width if by_rows else max(numel, 1))


def grid_for(shape: tuple[int, ...], state_format: StateFormat) -> Grid:
    """Return the grid of a parameter of this shape that is here whole."""
    return grid_of(shape, math.prod(shape), state_format)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of whole blocks of one parameter.

    Attributes:
        start, stop: values, half open, in the parameter's row-major order.
        first_block, stop_block: blocks, half open.
    """

    start: int
    stop: int
    first_block: int
    stop_block: int

    @property
    def numel(self) -> int:
        return self.stop - self.start

    def count(self, per: Per) -> int:
        """Return how many elements an array with one element `per` value, block or segment has here."""
        return _count(per, self.numel, self.stop_block - self.first_block)

    def bounds(self, per: Per) -> tuple[int, int]:
        """Return which elements of the parameter's array these are, half open."""
        if per is Per.VALUE:
            return self.start, self.stop
        return (self.first_block, self.stop_block) if per is Per.BLOCK else (0, 1)


@dataclass(frozen=True, slots=True)
class Segment(Span):
    """The part of one parameter that lies in one page.

    Attributes:
        offsets: byte offset in the page of each array of the format, in the order of `FIELDS`.
        nbytes: bytes taken in the page, from `offsets[0]` on.
    """

    offsets: tuple[int, ...]
    nbytes: int


def _count(per: Per, numel: int, num_blocks: int) -> int:
    if per is Per.VALUE:
        return numel
    return num_blocks if per is Per.BLOCK else 1


def _align(offset: int) -> int:
    return -(-offset // ARRAY_ALIGNMENT) * ARRAY_ALIGNMENT


def segment_nbytes(state_format: StateFormat, numel: int, num_blocks: int) -> int:
    """Return the bytes that a segment of `numel` values in `num_blocks` blocks takes in a page."""
    nbytes = 0
    for field in FIELDS[state_format]:
        nbytes += _align(field.dtype.itemsize * _count(field.per, numel, num_blocks))
    return nbytes


def fit(grid: Grid, state_format: StateFormat, first_block: int, offset: int, capacity: int) -> Segment | None:
    """Return the longest segment from `first_block` on that fits at byte `offset` of a page, None if no block does."""
    offset = _align(offset)
    room, last_block = capacity - offset, grid.num_blocks - 1
    stop_block = first_block + _num_fitting(state_format, *_repeating(grid, first_block), room)
    if stop_block >= last_block:  # the last block may be short
        rest = grid.span(first_block, last_block + 1)
        fits = segment_nbytes(state_format, rest.numel, rest.stop_block - first_block) <= room
        stop_block = last_block + fits
    if stop_block <= first_block:
        return None
    return _segment(grid, state_format, first_block, stop_block, offset)


def _repeating(grid: Grid, first_block: int) -> tuple[int, int]:
    """Return the row that repeats from `first_block` up to the last block of `grid`, and where in it to start."""
    if grid.num_rows == 1 or grid.row_width % BLOCK == 0:
        return BLOCK, 0  # all blocks are whole
    return grid.row_width, first_block % grid.blocks_per_row


@lru_cache(maxsize=4096)  # a large parameter asks for the same few, page after page
def _num_fitting(state_format: StateFormat, row_width: int, column: int, room: int) -> int:
    """Return how many blocks fit in `room` bytes, from `column` of a row on, of rows without end."""
    start, blocks_per_row = column * BLOCK, -(-row_width // BLOCK)

    def nbytes(num_blocks: int) -> int:
        rows, columns = divmod(column + num_blocks, blocks_per_row)
        return segment_nbytes(state_format, rows * row_width + columns * BLOCK - start, num_blocks)

    low, high = 0, max(room, 0)  # the bytes grow with the blocks, by one at least: bisect for the last that fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if nbytes(middle) <= room else (low, middle - 1)
    return low


def _segment(grid: Grid, state_format: StateFormat, first_block: int, stop_block: int, offset: int) -> Segment:
    start, stop = grid.start(first_block), grid.start(stop_block)
    offsets = []
    end = offset
    for field in FIELDS[state_format]:
        offsets.append(end)
        end += _align(field.dtype.itemsize * _count(field.per, stop - start, stop_block - first_block))
    return Segment(start, stop, first_block, stop_block, tuple(offsets), end - offset)
