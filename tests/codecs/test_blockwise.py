import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedopt.codecs.blockwise import (
    FLOOR,
    MAX_ROOT,
    MIN_ROOT,
    Blocks,
    decode,
    decode_moment,
    encode,
    encode_moment,
    floored,
    keepable,
)
from pagedopt.codecs.codebook import sorted_values

BOTH = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
ONE = torch.tensor(1.0)

# How far beyond the nearest distance a code may be, as a part of the value: the roundings of the encoder's product and
# sum, in steps of a piece (see codecs.codebook), where a step is at most twice the value.
ROUNDING = 2e-5


def spread_over_decades(count, signed, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 10 ** (-8 * torch.rand(count, generator=generator))
    return x * (torch.randint(0, 2, (count,), generator=generator) * 2 - 1) if signed else x


def nearest_distance(x, signed):
    values = sorted_values(signed=signed)
    values = values[values != 0].double()
    return torch.cat([(values - part[:, None]).abs().amin(1) for part in x.double().split(4096)])


def assert_nearest(x, signed):
    distance = (decode(encode(x, ONE, signed=signed), ONE, signed=signed).double() - x.double()).abs()
    assert (distance <= nearest_distance(x, signed) + ROUNDING * x.abs()).all()


@BOTH
def test_every_code_decodes_and_encodes_to_itself(signed):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8 if signed else torch.uint8)
    assert torch.equal(encode(decode(codes, ONE, signed=signed), ONE, signed=signed), codes)


@BOTH
def test_the_code_is_the_nearest_but_zero(signed):
    assert_nearest(spread_over_decades(100_000, signed), signed)


@BOTH
def test_the_code_is_the_nearest_around_every_midpoint(signed):
    values = sorted_values(signed=signed)
    values = values[values != 0].double()
    middle = ((values[1:] + values[:-1]) / 2).float()
    middle = middle[middle != 0]
    for ulps in range(-3, 4):
        assert_nearest((middle.view(torch.int32) + ulps).view(torch.float32), signed)


@BOTH
def test_encoding_keeps_the_order_of_values(signed):
    x = spread_over_decades(100_000, signed).sort().values
    decoded = decode(encode(x, ONE, signed=signed), ONE, signed=signed)
    assert (decoded.diff() >= 0).all()


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e19])
def test_only_zero_gets_the_zero_code(signed, scale):
    tiny = torch.tensor([0.0, -0.0, 2.0**-149, 1e-38, 1e-20, 1.0])
    codes = encode(tiny, torch.tensor(scale), signed=signed)
    assert (codes == 0).tolist() == [True, True, False, False, False, False]


@BOTH
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers(1, 70)
)
@settings(max_examples=200, deadline=None)
def test_any_finite_values_survive_within_half_a_step(signed, numbers, row_width):
    values = torch.tensor(numbers, dtype=torch.float32)[: max(len(numbers) // row_width * row_width, 1)]
    row_width = min(row_width, len(values))
    values = values if signed else values.abs()

    decoded = decode_moment(
        *encode_moment(values, row_width=row_width, signed=signed), row_width=row_width, signed=signed
    )

    largest = values.view(-1, row_width).abs().amax(1).repeat_interleave(row_width)
    assert decoded.isfinite().all()
    assert ((decoded == 0) == (values == 0)).all()
    # The widest half step is 0.9 / 64 / 2 of absmax and grows with the value; -1 is stored as the value before it.
    assert ((decoded.double() - values.double()).abs() <= 0.0071 * largest.double() + FLOOR).all()


@BOTH
def test_an_infinite_or_nan_value_does_not_change_its_block(signed):
    values = spread_over_decades(700, signed)
    spoilt = values.clone()
    values[5], values[300] = 0, 0
    spoilt[5], spoilt[300] = math.nan, math.inf

    codes, absmax = encode_moment(values, row_width=700, signed=signed)
    spoilt_codes, spoilt_absmax = encode_moment(spoilt, row_width=700, signed=signed)

    assert torch.equal(codes, spoilt_codes)
    assert torch.equal(absmax, spoilt_absmax)


@BOTH
@pytest.mark.parametrize("width", [64, 100, 255, 256, 257, 512, 700])
def test_rows_encode_alone_as_they_do_together(signed, width):
    rows = spread_over_decades(7 * width, signed).view(7, width)
    codes, absmax = encode_moment(rows, row_width=width, signed=signed)
    assert absmax.shape == (7, -(-width // 256))
    for first, stop in [(0, 3), (3, 4), (4, 7)]:
        part, part_absmax = encode_moment(rows[first:stop], row_width=width, signed=signed)
        assert torch.equal(part, codes[first:stop])
        assert torch.equal(part_absmax, absmax[first:stop])


@pytest.mark.parametrize("numel", [0, 1, 255, 256, 257])
def test_a_moment_of_any_size_round_trips_its_shape(numel):
    values = torch.linspace(-1, 1, numel)
    codes, absmax = encode_moment(values, row_width=max(numel, 1), signed=True)
    assert absmax.shape[0] == min(numel, 1)
    assert decode_moment(codes, absmax, row_width=max(numel, 1), signed=True).shape == values.shape


@given(st.integers(1, 600), st.data())
@settings(max_examples=200, deadline=None)
def test_blocks_are_those_of_the_whole_parameter_wherever_they_start(width, data):
    rows = data.draw(st.integers(1, 5))
    values = torch.rand(rows * width)
    whole = Blocks(0, rows * width, width)
    starts = [row * width + column for row in range(rows) for column in range(0, width, 256)]
    first = data.draw(st.integers(0, len(starts) - 1))
    stop = data.draw(st.integers(first + 1, len(starts)))
    start, end = starts[first], [*starts, rows * width][stop]

    part = Blocks(start, end - start, width)

    assert len(whole) == len(starts)
    assert len(part) == stop - first
    absmax = whole.absmax(values)
    assert torch.equal(part.absmax(values[start:end]), absmax[first:stop])
    assert torch.equal(part.spread(absmax[first:stop]), whole.spread(absmax)[start:end])


def test_the_stored_absmax_has_a_finite_reciprocal():
    absmax = floored(torch.tensor([0.0, 2.0**-149, FLOOR, 1.0, torch.finfo(torch.float32).max]))
    assert absmax.tolist() == [0, FLOOR, FLOOR, 1, torch.finfo(torch.float32).max]
    assert (1 / absmax[1:]).isfinite().all()


def test_keepable_moments_are_finite_and_no_m_stands_without_a_root():
    inf, nan = math.inf, math.nan
    #                  ordinary  spoilt spoilt spoilt  v overflowed  v underflowed  untouched
    m = torch.tensor([1.0, -2.0, nan, inf, -inf, 3e18, 0.0, 1e-30, 0.0])
    root = torch.tensor([0.5, 1e-5, nan, inf, inf, inf, inf, 0.0, 0.0])

    kept, kept_root = keepable(m, root)

    low, high = torch.tensor(MIN_ROOT).item(), torch.tensor(MAX_ROOT).item()
    assert kept.tolist() == [1, -2, 0, 0, 0, 0, 0, m[7].item(), 0]
    assert kept_root.tolist() == [0.5, root[1].item(), 0, 0, 0, high, high, low, 0]


def test_an_overflowed_root_overflows_again_and_the_largest_finite_one_does_not():
    high = floored(torch.tensor([MAX_ROOT]))
    again = decode(encode(high, high, signed=False), high, signed=False)
    assert (again * again).item() == math.inf

    largest = torch.tensor([torch.finfo(torch.float32).max]).double().sqrt().float()
    again = decode(encode(largest, largest, signed=False), largest, signed=False)
    assert math.isfinite((again * again).item())
