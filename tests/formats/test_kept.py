"""Arrays of a format and values, a span at a time: pieces give the bits of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedopt.codecs.base import FIELDS, Per, StateFormat
from pagedopt.codecs.blockwise import decode_moment, encode_moment
from pagedopt.formats import kept as kept_module
from pagedopt.formats.entry import Values
from pagedopt.formats.kept import Kept, Recoded
from pagedopt.layout import grid_for

SHAPES = [(), (1,), (255,), (1000,), (3, 300), (7, 64), (65, 63), (5, 512), (2, 3, 130), (0,), (0, 300)]
ALL_FORMATS = list(StateFormat)


def values_for(shape: tuple[int, ...], seed: int = 0) -> Values:
    generator = torch.Generator().manual_seed(seed)
    numel = math.prod(shape)
    scale = 10 ** torch.empty(numel).uniform_(-6, 0, generator=generator)
    m = torch.randn(numel, generator=generator) * scale
    return Values(m, m.square() * 1.5, m.square() * 2)


def recoded(reader: Values | Kept, state_format: StateFormat, shape: tuple[int, ...]) -> Kept:
    grid = grid_for(shape, state_format)
    counts = {Per.VALUE: grid.numel, Per.BLOCK: grid.num_blocks, Per.SEGMENT: 1}
    arrays = {i: torch.zeros(counts[f.per], dtype=f.dtype) for i, f in enumerate(FIELDS[state_format])}
    Recoded(reader, state_format, grid).fill(grid.span(0, grid.num_blocks), arrays)
    return Kept.in_memory(state_format, grid, arrays)


def arrays_of(kept: Kept) -> list[Tensor]:
    span = kept.grid.span(0, kept.grid.num_blocks)
    out = []
    for index, field in enumerate(FIELDS[kept.state_format]):
        start, stop = span.bounds(field.per)
        out.append(torch.empty(stop - start, dtype=field.dtype))
        kept.fill(index, start, stop, out[-1])
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("state_format", ALL_FORMATS, ids=lambda f: f.name)
def test_pieces_give_the_bits_of_the_whole(
    shape: tuple[int, ...], state_format: StateFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_for(shape)
    whole = arrays_of(recoded(values, state_format, shape))
    monkeypatch.setattr(kept_module, "PIECE", 256)
    for ours, theirs in zip(arrays_of(recoded(values, state_format, shape)), whole, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if math.prod(shape)], ids=str)
def test_block_wise_state_is_what_the_codec_makes_of_the_whole_parameter(shape: tuple[int, ...]) -> None:
    values, state_format = values_for(shape), StateFormat.BLOCKWISE8
    width = grid_for(shape, state_format).row_width
    kept = arrays_of(recoded(values, state_format, shape))
    for index, (moment, signed) in enumerate(((values.exp_avg, True), (values.exp_avg_sq.double().sqrt(), False))):
        codes, absmax = encode_moment(moment.float(), row_width=width, signed=signed)
        assert torch.equal(kept[index], codes)
        assert torch.equal(kept[index + 2], absmax.view(-1))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if math.prod(shape)], ids=str)
@pytest.mark.parametrize("state_format", ALL_FORMATS, ids=lambda f: f.name)
@given(data=st.data())
def test_any_span_reads_as_that_part_of_the_whole(
    shape: tuple[int, ...], state_format: StateFormat, data: st.DataObject
) -> None:
    numel = math.prod(shape)
    kept = recoded(values_for(shape), state_format, shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    whole, part = kept.moments(0, numel), kept.moments(start, stop)
    assert torch.equal(part.exp_avg, whole.exp_avg[start:stop])
    assert torch.equal(part.exp_avg_sq, whole.exp_avg_sq[start:stop])


def test_8_bits_through_32_bits_and_back_are_the_same_bits() -> None:
    shape = (40, 700)
    kept = recoded(values_for(shape), StateFormat.BLOCKWISE8, shape)
    there = recoded(kept, StateFormat.FLOAT32, shape)
    back = recoded(there, StateFormat.BLOCKWISE8, shape)
    for ours, theirs in zip(arrays_of(back), arrays_of(kept), strict=True):
        assert torch.equal(ours, theirs)


def test_the_same_format_is_copied_and_not_converted() -> None:
    """Even bytes that no codec writes stay."""
    shape, state_format = (3, 300), StateFormat.BLOCKWISE8
    grid = grid_for(shape, state_format)
    arrays = {
        0: torch.randint(-128, 128, (900,), dtype=torch.int8),
        1: torch.randint(0, 256, (900,), dtype=torch.uint8),
        2: torch.full((6,), math.nan),
        3: torch.rand(6),
    }
    copy = arrays_of(recoded(Kept.in_memory(state_format, grid, arrays), state_format, shape))
    assert all(torch.equal(ours.view(torch.uint8), arrays[index].view(torch.uint8)) for index, ours in enumerate(copy))


def test_a_maximum_that_was_not_kept_starts_at_the_second_moment() -> None:
    values = values_for((300,))
    plain = recoded(values, StateFormat.FLOAT32, (300,))
    with_max = recoded(plain, StateFormat.FLOAT32_AMSGRAD, (300,)).moments(0, 300)
    assert with_max.max_exp_avg_sq is not None
    assert torch.equal(with_max.max_exp_avg_sq, values.exp_avg_sq)


def test_values_that_8_bits_cannot_keep_become_what_the_optimizer_would_make_of_them() -> None:
    m = torch.tensor([math.nan, math.inf, 1.0, 1.0, 0.0])
    v = torch.tensor([1.0, 1.0, math.inf, 0.0, 1.0])
    kept = recoded(Values(m, v), StateFormat.BLOCKWISE8, (5,)).moments(0, 5)
    assert kept.exp_avg.tolist() == [0, 0, 0, 1, 0]
    assert kept.exp_avg_sq.isfinite().tolist() == [True, True, False, True, True]
    assert kept.exp_avg_sq[3] > 0, "a first moment beside a second of zero would be an endless update"


def test_decoding_reads_the_scale_of_each_values_own_block() -> None:
    shape = (4, 300)
    values = values_for(shape)
    kept = recoded(values, StateFormat.BLOCKWISE8, shape)
    codes, _, absmax, _ = arrays_of(kept)
    whole = decode_moment(codes.view(shape), absmax, row_width=300, signed=True)
    assert torch.equal(kept.moments(0, 1200).exp_avg.view(shape), whole)
