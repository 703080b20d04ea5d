"""The tables a launch reads: of a page, uploaded once, and of a step, uploaded once a step in one copy.

tiles         int32 [num_tiles]          the segment of each tile
segments      int64 [num_segments, 13]
    0         operand                    these eight as in `args.Column`
    1         base
    2         numel
    3         format
    4..7      fields
    8         first_tile                 the segment's tiles are numbered from here
    9         blocks_per_row             ENDLESS where blocks follow one another: one row without end
    10        row_width                  ENDLESS * 256 there
    11        first_column               of the segment's first block, in blocks
    12        num_blocks
operands      int64 [num_operands, 4]
    0         address of the parameter
    1         address of the gradient
    2         row of scalars
    3         number of the pair of their dtypes, or NO_GRAD
scalars       float32 [num_rows, 10]     as in `args.Scalar`
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from pagedopt.codecs.base import BLOCK, StateFormat
from pagedopt.kernels.args import Column, Operands, Scalar

TILE_BLOCKS = 16
"""Blocks of a tile: many values share the tables that 8 bits need in shared memory, and still 256 threads take no more
than 128 registers each, so an SM works at two tiles at once.
"""

ENDLESS = 1 << 30
"""Blocks: more than any segment has, few enough for 32 bits."""

NO_GRAD = -1

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NUMBER = {dtype: number for number, dtype in enumerate(DTYPES)}

assert [scalar.value for scalar in Scalar] == list(range(10)), "the kernels read the scalars in this order"


@dataclass(frozen=True, slots=True)
class PageTables:
    """The tables of one page on one device.

    Attributes:
        formats: bit f is set where a segment has format f.
        residents: the operands that have a segment in the page.
        stream: the stream whose memory this is.
        num_tiles, num_segments: of the page: asked for at every launch, when asking a tensor takes a microsecond.
        is_tensorwise: whether any segment is.
    """

    tiles: Tensor
    segments: Tensor
    formats: int
    residents: frozenset[int]
    stream: torch.Stream | None
    num_tiles: int
    num_segments: int
    is_tensorwise: bool


@dataclass(frozen=True, slots=True)
class StepTables:
    """The tables of one step's operands on one device.

    Attributes:
        pairs: number of the pair of dtypes of each operand, or NO_GRAD.
        stream: the stream that the step runs on.
    """

    operands: Tensor
    scalars: Tensor
    pairs: list[int]
    live_pairs: frozenset[int]
    stream: torch.Stream | None

    def live_pairs_of(self, page: PageTables) -> list[int]:
        """Return the pairs of dtypes that `page` needs a launch for."""
        if len(self.live_pairs) == 1:
            return [*self.live_pairs]
        return sorted({self.pairs[operand] for operand in page.residents} & self.live_pairs)


def page_tables(segments: Tensor, device: torch.device) -> PageTables:
    """Return the tables of a page's segment table (int64 [num_segments, len(Column)], on the CPU)."""
    rows, num_tiles = _segment_rows(segments)
    tiles = torch.arange(len(rows), dtype=torch.int32, device="cpu").repeat_interleave(num_tiles)
    device_rows, device_tiles = _upload(device, rows, tiles)
    formats = sum(1 << state_format for state_format in set(segments[:, Column.FORMAT].tolist()))
    return PageTables(
        device_tiles,
        device_rows,
        formats,
        frozenset(segments[:, Column.OPERAND].tolist()),
        _current_stream(device),
        num_tiles=len(tiles),
        num_segments=len(rows),
        is_tensorwise=bool(formats >> StateFormat.TENSORWISE8 & 1),
    )


def _segment_rows(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the device's rows of the segments, and how many tiles each has."""
    numel, width = segments[:, Column.NUMEL], segments[:, Column.ROW_WIDTH]
    lead = segments[:, Column.START] % width
    has_rows = segments[:, Column.FORMAT] == StateFormat.BLOCKWISE8
    has_rows &= (width % BLOCK != 0) & (lead + numel > width)

    blocks_per_row = torch.where(has_rows, _ceil_div(width, BLOCK), ENDLESS)
    row_width = torch.where(has_rows, width, ENDLESS * BLOCK)
    first_column = torch.where(has_rows, lead // BLOCK, 0)
    last_value = first_column * BLOCK + numel - 1
    last_block = last_value // row_width * blocks_per_row + last_value % row_width // BLOCK
    num_blocks = last_block - first_column + 1
    num_tiles = _ceil_div(num_blocks, TILE_BLOCKS)

    columns = [Column.OPERAND, Column.BASE, Column.NUMEL, Column.FORMAT]
    columns += [Column.FIELD_0, Column.FIELD_1, Column.FIELD_2, Column.FIELD_3]
    first_tile = num_tiles.cumsum(0) - num_tiles
    derived = torch.stack([first_tile, blocks_per_row, row_width, first_column, num_blocks], 1)
    return torch.cat([segments[:, columns], derived], 1), num_tiles


def _ceil_div(dividend: Tensor, divisor: int) -> Tensor:
    return (dividend + (divisor - 1)) // divisor


def step_tables(operands: Operands, device: torch.device) -> StepTables:
    """Return the tables of a step's operands, on the current stream of `device`."""
    columns = [
        list(map(Tensor.data_ptr, operands.params)),
        _addresses(operands.grads),
        list(operands.scalar_rows),
        pairs := _pairs(operands.params, operands.grads),
    ]
    cells = array("q", bytes(8 * len(columns) * len(pairs)))
    for number, column in enumerate(columns):
        cells[number :: len(columns)] = array("q", column)
    table = torch.frombuffer(cells, dtype=torch.int64) if pairs else torch.zeros(0, dtype=torch.int64, device="cpu")
    device_table, scalars = _upload(device, table, operands.scalars)
    live_pairs = frozenset(pairs) - {NO_GRAD}
    return StepTables(device_table.view(-1, len(columns)), scalars, pairs, live_pairs, _current_stream(device))


_DTYPE = attrgetter("dtype")


def _addresses(grads: Sequence[Tensor | None]) -> list[int]:
    return [0 if grad is None else grad.data_ptr() for grad in grads]


def _pairs(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[int]:
    """Return the number of the pair of dtypes of each operand, or NO_GRAD."""
    given = [grad for grad in grads if grad is not None]
    if len(given) == len(grads):
        param_dtypes, grad_dtypes = set(map(_DTYPE, params)), set(map(_DTYPE, given))
        if len(param_dtypes) == len(grad_dtypes) == 1:  # the usual step, told without Python between tensors
            return [_number(*param_dtypes, *grad_dtypes)] * len(params)
    return [
        NO_GRAD if grad is None else _number(param.dtype, grad.dtype) for param, grad in zip(params, grads, strict=True)
    ]


def _number(param: torch.dtype, grad: torch.dtype) -> int:
    return _NUMBER[param] * len(DTYPES) + _NUMBER[grad]


def dtypes_of(pair: int) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of parameter and gradient of a pair."""
    param, grad = divmod(pair, len(DTYPES))
    return DTYPES[param], DTYPES[grad]


def _upload(device: torch.device, *tables: Tensor) -> list[Tensor]:
    """Return copies of CPU tensors on `device`, sent in one asynchronous copy from pinned memory."""
    buffer = torch.cat([table.contiguous().view(-1).view(torch.uint8) for table in tables])
    if device.type != "cpu":
        buffer = buffer.pin_memory().to(device, non_blocking=True)
    parts = torch.split(buffer, [table.nbytes for table in tables])
    return [part.view(table.dtype).view(table.shape) for part, table in zip(parts, tables, strict=True)]


def _current_stream(device: torch.device) -> torch.Stream | None:
    return None if device.type == "cpu" else torch.accelerator.current_stream(device)
