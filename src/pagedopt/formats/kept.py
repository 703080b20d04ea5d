"""Moments as the arrays of a page's format and back, a span at a time.

Kept       arrays of a format that lie anywhere (tensors, pages, a file), read as moments
Recoded    moments from any reader, written as the arrays of a format; exact where they already are
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pagedopt.codecs.base import BLOCK, FIELDS, Per, StateFormat
from pagedopt.codecs.blockwise import Blocks, decode, encode, floored, keepable
from pagedopt.codecs.codebook import sorted_values
from pagedopt.formats.entry import PIECE, Moments, Reader
from pagedopt.layout import Grid, Span

_MOST_NEGATIVE = -sorted_values(signed=True)[0].item()
"""The size of the most negative value of the codebook of `exp_avg`; its largest is 1."""

_SAMPLED = 16
"""One of so many values is looked at to tell whether it can pay to look at all."""

Fill = Callable[[int, int, int, Tensor], None]
"""`fill(index, start, stop, into)`: put the elements [start, stop) of array `index` of `FIELDS` into a flat tensor."""


class Kept:
    """A reader of the arrays of `state_format`, which `fill` brings from where they are.

    Args:
        finish: called when all was read.
    """

    def __init__(
        self, state_format: StateFormat, grid: Grid, fill: Fill, finish: Callable[[], None] = lambda: None
    ) -> None:
        self.state_format = state_format
        self.grid = grid
        self.fill = fill
        self.finish = finish

    @classmethod
    def in_memory(cls, state_format: StateFormat, grid: Grid, arrays: Mapping[int, Tensor]) -> Kept:
        """Return a reader of arrays that are tensors."""
        flat = {index: array.reshape(-1) for index, array in arrays.items()}

        def fill(index: int, start: int, stop: int, into: Tensor) -> None:
            into.copy_(flat[index][start:stop])

        return cls(state_format, grid, fill)

    def moments(self, start: int, stop: int) -> Moments:
        if not self.state_format.is_8bit:
            return Moments(*(self._read(index, start, stop) for index in range(len(FIELDS[self.state_format]))))
        if start == stop:
            return Moments(torch.empty(0), torch.empty(0))
        m, root = (self._decoded(index, start, stop, signed=index == 0) for index in (0, 1))
        return Moments(m, root * root)

    def _decoded(self, index: int, start: int, stop: int, *, signed: bool) -> Tensor:
        span = self.grid.covering(start, stop)
        codes = self._read(index, span.start, span.stop)
        absmax_per = FIELDS[self.state_format][index + 2].per
        absmax = self._read(index + 2, *span.bounds(absmax_per))
        if absmax_per is Per.BLOCK:
            absmax = Blocks(span.start, span.numel, self.grid.row_width).spread(absmax)
        return decode(codes, absmax, signed=signed)[start - span.start : stop - span.start]

    def _read(self, index: int, start: int, stop: int) -> Tensor:
        values = torch.empty(stop - start, dtype=FIELDS[self.state_format][index].dtype, device="cpu")
        self.fill(index, start, stop, values)
        return values


class Recoded:
    """What `reader` reads, as the arrays of `state_format`."""

    def __init__(self, reader: Reader, state_format: StateFormat, grid: Grid) -> None:
        self._reader = reader
        self._format = state_format
        self._grid = grid
        self._absmax = _absmax(reader, grid.numel) if state_format is StateFormat.TENSORWISE8 else None

    def fill(self, span: Span, arrays: Mapping[int, Tensor]) -> None:
        """Fill the span's part of each array, flat tensors by index in `FIELDS`."""
        reader = self._reader
        if isinstance(reader, Kept) and self._is_kept_so(reader):
            for index, into in arrays.items():
                reader.fill(index, *span.bounds(FIELDS[self._format][index].per), into)
            return
        for piece in _pieces(self._grid, span):
            encoded = self._encoded(piece)
            for index, into in arrays.items():
                per = FIELDS[self._format][index].per
                first, (start, stop) = span.bounds(per)[0], piece.bounds(per)
                into[start - first : stop - first].copy_(encoded[index])

    def _is_kept_so(self, reader: Kept) -> bool:
        """Whether the arrays of `reader` are those to be written; with one block, tensor-wise is block-wise."""
        formats = {reader.state_format, self._format}
        same = len(formats) == 1 or (all(f.is_8bit for f in formats) and self._grid.num_blocks == 1)
        return same and reader.grid == self._grid

    def _encoded(self, span: Span) -> list[Tensor]:
        moments = self._reader.moments(span.start, span.stop)
        if self._format.is_8bit:
            return self._codes(span, moments)
        v_max = moments.exp_avg_sq if moments.max_exp_avg_sq is None else moments.max_exp_avg_sq
        return [moments.exp_avg, moments.exp_avg_sq, v_max]  # a maximum starts at what is there when it is switched on

    def _codes(self, span: Span, moments: Moments) -> list[Tensor]:
        blocks = Blocks(span.start, span.numel, self._grid.row_width)
        codes, scales = [], []
        for index, values in enumerate(_keepable(moments)):
            absmax = floored(blocks.absmax(values)) if self._absmax is None else self._absmax[index : index + 1]
            per_value = blocks.spread(absmax) if self._absmax is None else absmax
            coded = encode(values, per_value, signed=index == 0)
            if index == 0 and self._absmax is None:
                coded, absmax = _as_decoded(values, coded, absmax, blocks)
            codes.append(coded)
            scales.append(absmax)
        return [*codes, *scales]


def _keepable(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return the first moment and the root of the second as 8 bits can keep them."""
    return keepable(moments.exp_avg, moments.exp_avg_sq.double().sqrt().float())


def _absmax(reader: Reader, numel: int) -> Tensor:
    """Return the absmax of both moments of a whole parameter, as tensor-wise state has them."""
    largest = torch.zeros(2, device="cpu")
    for start in range(0, numel, PIECE):
        m, root = _keepable(reader.moments(start, min(start + PIECE, numel)))
        largest = torch.maximum(largest, torch.stack((m.abs().amax(), root.amax())))
    return floored(largest)


def _as_decoded(values: Tensor, codes: Tensor, absmax: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Return codes and absmax of signed values; where the values were once decoded, those that they were decoded from.

    There is no code for -1, so a block whose largest |value| was negative is decoded to a smaller one, and encoding
    that with its own absmax would move every code. Such a block is told by all its values being exact with the larger
    absmax that it must have had. With this, state that goes through 32 bits and back is the same to the bit.
    """

    def is_exact(trial: Tensor, scale: Tensor) -> Tensor:
        differs = decode(trial, blocks.spread(scale), signed=True) != values
        return blocks.absmax(differs.float()) == 0

    inexact = ~is_exact(codes, absmax)
    guess = absmax / _MOST_NEGATIVE
    for scale in (guess, guess.nextafter(torch.zeros_like(guess)), guess.nextafter(torch.full_like(guess, torch.inf))):
        candidates = inexact & _may_be_exact(values, scale, blocks)
        if not candidates.any():
            continue
        trial = encode(values, blocks.spread(scale), signed=True)
        found = candidates & is_exact(trial, scale)
        absmax = torch.where(found, scale, absmax)
        codes = torch.where(blocks.spread(found), trial, codes)
        inexact &= ~found
    return codes, absmax


def _may_be_exact(values: Tensor, scale: Tensor, blocks: Blocks) -> Tensor:
    """Return for each block whether a few of its values are exact with that scale.

    Blocks that never were codes are told by that, and to look at all their values takes thrice the time of encoding.
    """
    some = values[::_SAMPLED]
    per_value = blocks.spread(scale)[::_SAMPLED]
    differs = decode(encode(some, per_value, signed=True), per_value, signed=True) != some
    block = blocks.spread(torch.arange(len(blocks), device="cpu"))[::_SAMPLED]
    return torch.zeros(len(blocks), device="cpu").scatter_reduce_(0, block, differs.float(), "amax") == 0


def _pieces(grid: Grid, span: Span) -> Iterator[Span]:
    """Cut a span at blocks into parts of at most `PIECE` values."""
    for first in range(span.first_block, span.stop_block, PIECE // BLOCK):
        yield grid.span(first, min(first + PIECE // BLOCK, span.stop_block))
