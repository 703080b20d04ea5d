"""The update of a page on the GPU: `kernels.reference`, operation by operation, one program a tile.

    tile      at most BLOCKS blocks of one segment, [BLOCKS, 256]: a block is a row
    program   tile -> segment -> operand -> addresses; then load, decode, update, reduce, encode, store

A launch serves one pair of element types of parameter and gradient; its programs pass over every other operand, and
over those without a gradient. Formats are told apart as it runs, so a page of several is one launch all the same.

Addresses are 64 bits. How a tile lies in memory (LAYOUT) decides how it is read:

    2   whole: every block has 256 values and follows the last, on multiples of 16 bytes: wide, without a mask
    1   in fours, block-wise state only: blocks of any multiple of four values, on multiples of four: wide, masked
    0   any: value by value, masked

Look-ups of 8-bit state in the first two go through shared memory, which is filled for every tile.

Capitals are compile-time constants. Layouts, formats and the columns of the tables (`triton_tables`) are numbers here:
Triton compares every global that a kernel names at every launch, at 2 µs each.
"""

import triton
import triton.language as tl

from pagedopt.kernels.triton_codec import floored
from pagedopt.kernels.triton_tile import (
    blockwise_tile,
    float32_tile,
    measure_tensorwise,
    num_parts,
    tensorwise_tile,
)

_TABLES = ["tiles", "segments", "operands", "scalars", "codec", "absmax", "frame"]
"""Arguments that are never specialised on: what is aligned is asked tile by tile."""


@triton.jit(do_not_specialize=_TABLES)
def update_page(
    tiles,
    segments,
    operands,
    scalars,
    codec,
    absmax,
    frame,
    FORMATS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
):
    """Update tile `program_id(0)` of a page in place.

    Args:
        tiles: see `triton_tables`, as for the next three.
        segments: of the page.
        operands: of the step.
        scalars: of the step.
        codec: see `triton_codec.codec_table`.
        absmax: `Operands.absmax`.
        frame: the page.
        FORMATS: bit f is set where the page has a segment of format f.
        PARAM: the element type of the parameters served.
        GRAD: the element type of their gradients.
        PAIR: the number of these two in `operands`.
        BLOCKS: of a tile.
        BY_HAND: round to bfloat16 with integers, because Triton's interpreter does not round to nearest even.
    """
    segment, operand, tile = _find(tiles, segments, operands)
    if tl.load(operand + 3) == PAIR:
        absmax += tl.load(segment + 0) * 2
        scalars += tl.load(operand + 2) * 10
        param, grad, field_0, field_1, field_2, field_3 = _addresses(segment, operand, frame, PARAM, GRAD)
        layout = _layout(segment, tile, param, grad, field_0, field_1, field_2, field_3, PARAM, GRAD, BLOCKS)
        for each in tl.static_range(3):
            if layout == each:
                _update_tile(
                    segment,
                    tile,
                    param,
                    grad,
                    field_0,
                    field_1,
                    field_2,
                    field_3,
                    scalars,
                    codec,
                    absmax,
                    FORMATS,
                    PARAM,
                    GRAD,
                    BLOCKS,
                    BY_HAND,
                    each,
                )


@triton.jit(do_not_specialize=_TABLES)
def measure_page(
    tiles,
    segments,
    operands,
    scalars,
    codec,
    absmax,
    frame,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Raise `absmax` to what tile `program_id(0)` will need, if its segment is tensor-wise. See `update_page`."""
    segment, operand, tile = _find(tiles, segments, operands)
    if (tl.load(operand + 3) == PAIR) & (tl.load(segment + 3) == 3):
        scalars += tl.load(operand + 2) * 10
        absmax += tl.load(segment + 0) * 2
        param, grad, field_0, field_1, field_2, field_3 = _addresses(segment, operand, frame, PARAM, GRAD)
        if _layout(segment, tile, param, grad, field_0, field_1, field_2, field_3, PARAM, GRAD, BLOCKS) == 2:
            measure_tensorwise(
                segment, tile, grad, field_0, field_1, field_2, field_3, scalars, codec, absmax, GRAD, BLOCKS, 2
            )
        else:
            part = tile * (BLOCKS // 4)
            end = part + num_parts(segment, tile, BLOCKS)
            while part < end:
                measure_tensorwise(
                    segment, part, grad, field_0, field_1, field_2, field_3, scalars, codec, absmax, GRAD, 4, 0
                )
                part += 1


@triton.jit(do_not_specialize=_TABLES)
def store_absmax(segments, operands, absmax, frame):
    """Write the absmax of segment `program_id(0)` into the page, if it is tensor-wise and was updated.

    A launch of its own: while `update_page` runs, other tiles of the segment still decode with the old one.
    """
    segment = segments + tl.program_id(0).to(tl.int64) * 13
    operand = operands + tl.load(segment + 0) * 4
    if (tl.load(operand + 3) >= 0) & (tl.load(segment + 3) == 3):
        absmax += tl.load(segment + 0) * 2
        page = frame.to(tl.int64)
        for each in tl.static_range(2):
            kept = (page + tl.load(segment + 6 + each)).to(tl.pointer_type(tl.float32))
            tl.store(kept, floored(tl.load(absmax + each)))


@triton.jit
def _find(tiles, segments, operands):
    """Return the rows of the segment and the operand of this program's tile, and the tile's number in its segment."""
    tile = tl.program_id(0)
    segment = segments + tl.load(tiles + tile).to(tl.int64) * 13
    return segment, operands + tl.load(segment + 0) * 4, tile - tl.load(segment + 8).to(tl.int32)


@triton.jit
def _addresses(segment, operand, frame, PARAM: tl.constexpr, GRAD: tl.constexpr):
    """Return the addresses of a segment's first value in the parameter, in the gradient, and in its four fields.

    Loaded once: each load of a number is one of every warp.
    """
    base = tl.load(segment + 1)
    param = tl.load(operand + 0) + base * (PARAM.primitive_bitwidth // 8)
    grad = tl.load(operand + 1) + base * (GRAD.primitive_bitwidth // 8)
    page = frame.to(tl.int64)
    field_0, field_1 = page + tl.load(segment + 4), page + tl.load(segment + 5)
    field_2, field_3 = page + tl.load(segment + 6), page + tl.load(segment + 7)
    return param, grad, field_0, field_1, field_2, field_3


@triton.jit
def _layout(
    segment,
    tile,
    param,
    grad,
    field_0,
    field_1,
    field_2,
    field_3,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Return the LAYOUT of a tile."""
    numel = tl.load(segment + 2)
    arrays = field_0 | field_1 | field_2 | field_3
    fours = (param & (PARAM.primitive_bitwidth // 2 - 1)) | (grad & (GRAD.primitive_bitwidth // 2 - 1))

    is_one_row = tl.load(segment + 9) == 1 << 30
    is_whole = is_one_row & ((tile + 1).to(tl.int64) * (BLOCKS * 256) <= numel) & (((param | grad) & 15) == 0)
    is_in_fours = (tl.load(segment + 3) == 2) & (((numel | tl.load(segment + 10)) & 3) == 0) & (fours == 0)
    return tl.where((arrays & 15) != 0, 0, tl.where(is_whole, 2, tl.where(is_in_fours, 1, 0)))


@triton.jit
def _update_tile(
    segment,
    tile,
    param,
    grad,
    field_0,
    field_1,
    field_2,
    field_3,
    scalars,
    codec,
    absmax,
    FORMATS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    state_format = tl.load(segment + 3)
    if LAYOUT != 1:
        if FORMATS & 1:
            if state_format == 0:
                float32_tile(
                    segment,
                    tile,
                    param,
                    grad,
                    field_0,
                    field_1,
                    field_2,
                    scalars,
                    PARAM,
                    GRAD,
                    BLOCKS,
                    BY_HAND,
                    LAYOUT,
                    False,
                )
        if FORMATS & 2:
            if state_format == 1:
                float32_tile(
                    segment,
                    tile,
                    param,
                    grad,
                    field_0,
                    field_1,
                    field_2,
                    scalars,
                    PARAM,
                    GRAD,
                    BLOCKS,
                    BY_HAND,
                    LAYOUT,
                    True,
                )
        if FORMATS & 8:
            if state_format == 3:
                tensorwise_tile(
                    segment,
                    tile,
                    param,
                    grad,
                    field_0,
                    field_1,
                    field_2,
                    field_3,
                    scalars,
                    codec,
                    absmax,
                    PARAM,
                    GRAD,
                    BLOCKS,
                    BY_HAND,
                    LAYOUT,
                )
    if FORMATS & 4:
        if state_format == 2:
            blockwise_tile(
                segment,
                tile,
                param,
                grad,
                field_0,
                field_1,
                field_2,
                field_3,
                scalars,
                codec,
                PARAM,
                GRAD,
                BLOCKS,
                BY_HAND,
                LAYOUT,
            )
