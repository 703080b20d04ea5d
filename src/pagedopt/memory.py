"""How many bytes AdamW's state takes and how many stay resident under a budget: arithmetic, no tensor is made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from pagedopt.codecs.base import StateFormat
from pagedopt.layout import grid_of, segment_nbytes
from pagedopt.optim.arguments import MIN_8BIT_SIZE
from pagedopt.units import format_bytes, format_count

USUAL_SIZES = ("0.5B", "1.5B", "3B", "7B", "8B")
"""Well-known models come in these."""


@dataclass(frozen=True, slots=True)
class Row:
    """The state of a model of `num_params` parameters; all `_nbytes` but the first are of 8-bit state."""

    num_params: int
    state_32bit_nbytes: int
    state_8bit_nbytes: int
    resident_nbytes: int
    elsewhere_nbytes: int


def state_nbytes(shapes: Iterable[tuple[int, ...]], state_format: StateFormat) -> int:
    """Return the bytes of AdamW's state of parameters of these shapes, without what pages leave free."""
    return sum(_state_nbytes(shape, state_format) for shape in shapes)


def memory_rows(sizes: Sequence[int], *, budget_nbytes: int) -> list[Row]:
    """Return a row for each number of parameters, as if they were one vector."""
    return [_row(num_params, budget_nbytes) for num_params in sizes]


def as_table(rows: Sequence[Row], *, budget_nbytes: int) -> Table:
    """Return the rows as a table for a terminal."""
    table = Table()
    for head in headings(budget_nbytes):
        table.add_column(head, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*cells(row))
    return table


def as_markdown(rows: Sequence[Row], *, budget_nbytes: int) -> str:
    """Return the rows as a Markdown table."""
    heads = headings(budget_nbytes)
    lines = [_markdown_line(heads), _markdown_line(["---:"] * len(heads))]
    return "\n".join(lines + [_markdown_line(cells(row)) for row in rows])


def as_json(rows: Sequence[Row], *, budget_nbytes: int) -> str:
    """Return the rows as JSON; every `_nbytes` is a number of bytes."""
    return json.dumps({"budget_nbytes": budget_nbytes, "rows": [asdict(row) for row in rows]}, indent=2)


def headings(budget_nbytes: int) -> list[str]:
    """Return the heads of the columns that `cells` fills."""
    return ["parameters", "32-bit state", "8-bit state", f"resident under {format_bytes(budget_nbytes)}", "paged out"]


def cells(row: Row) -> list[str]:
    """Return a row as people read it."""
    sizes = (row.state_32bit_nbytes, row.state_8bit_nbytes, row.resident_nbytes, row.elsewhere_nbytes)
    return [format_count(row.num_params), *map(format_bytes, sizes)]


def _markdown_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _row(num_params: int, budget_nbytes: int) -> Row:
    shapes = [(num_params,)]
    encoded = state_nbytes(shapes, StateFormat.BLOCKWISE8)
    resident = min(encoded, budget_nbytes)
    return Row(num_params, state_nbytes(shapes, StateFormat.FLOAT32), encoded, resident, encoded - resident)


def _state_nbytes(shape: tuple[int, ...], state_format: StateFormat) -> int:
    numel = math.prod(shape)
    if numel < MIN_8BIT_SIZE and state_format.is_8bit:
        state_format = StateFormat.FLOAT32
    grid = grid_of(shape, numel, state_format)
    return segment_nbytes(state_format, grid.numel, grid.num_blocks)
