"""The update of a page on the GPU: `kernels.reference`, operation by operation, one program a tile.

    tile      at most BLOCKS blocks of one segment, [BLOCKS, 256]: a block is a row
    program   tile -> segment -> operand -> addresses; then load, decode, update, reduce, encode, store

A launch serves one pair of element types of parameter and gradient; its programs pass over every other operand, and
over those without a gradient. Formats are told apart as it runs, so a page of several is one launch all the same.

Addresses are 64 bits. How a tile lies in memory (LAYOUT) decides how it is read:

    2   whole: every block has 256 values and follows the last, on multiples of four values: wide, without a mask
    1   in fours, block-wise state only: blocks of any multiple of four values, on multiples of four: wide, masked
    0   any: value by value, masked

Capitals are compile-time constants. Layouts, formats and the columns of the tables (`triton_tables`) are numbers here:
Triton compares every global that a kernel names at every launch, at 2 us each.
"""

import triton
import triton.language as tl

from pagedopt.kernels.triton_codec import (
    decode,
    encode,
    floored,
    inverted,
    keepable,
    load_constants,
    without_zeros,
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
        page = frame.to(tl.int64)
        layout = _layout(segment, operand, tile, page, PARAM, GRAD, BLOCKS)
        for each in tl.static_range(3):
            if layout == each:
                _update_tile(
                    segment,
                    operand,
                    tile,
                    scalars,
                    page,
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
    GRAD: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Raise `absmax` to what tile `program_id(0)` will need, if its segment is tensor-wise. See `update_page`."""
    segment, operand, tile = _find(tiles, segments, operands)
    if (tl.load(operand + 3) == PAIR) & (tl.load(segment + 3) == 3):
        scalars += tl.load(operand + 2) * 10
        first, within, mask = _values_of_tile(segment, tile, BLOCKS, 0)
        g = _load_float(_address(operand + 1, segment, GRAD), first, within, mask, GRAD, 0)
        _, min_root, max_root = load_constants(codec)

        _, m, root = _advance_tensorwise(segment, first, within, mask, g, scalars, frame.to(tl.int64), codec, 0)
        _, _, m_absmax, root_absmax, _ = keepable(m, root, min_root, max_root)

        # The bits of floats that are not negative order as they do, and the largest is the same in any order.
        bits = (absmax + tl.load(segment + 0) * 2).to(tl.pointer_type(tl.int32))
        tl.atomic_max(bits + 0, tl.max(m_absmax, 0).to(tl.int32, bitcast=True))
        tl.atomic_max(bits + 1, tl.max(root_absmax, 0).to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=_TABLES)
def store_absmax(segments, operands, codec, absmax, frame):
    """Write the absmax of segment `program_id(0)` into the page, if it is tensor-wise and was updated.

    A launch of its own: while `update_page` runs, other tiles of the segment still decode with the old one.
    """
    segment = segments + tl.program_id(0).to(tl.int64) * 13
    operand = operands + tl.load(segment + 0) * 4
    if (tl.load(operand + 3) >= 0) & (tl.load(segment + 3) == 3):
        floor, _, _ = load_constants(codec)
        absmax += tl.load(segment + 0) * 2
        page = frame.to(tl.int64)
        tl.store(_array(page, segment + 6, tl.float32), floored(tl.load(absmax + 0), floor))
        tl.store(_array(page, segment + 7, tl.float32), floored(tl.load(absmax + 1), floor))


@triton.jit
def _find(tiles, segments, operands):
    """Return the rows of the segment and the operand of this program's tile, and the tile's number in its segment."""
    tile = tl.program_id(0)
    segment = segments + tl.load(tiles + tile).to(tl.int64) * 13
    return segment, operands + tl.load(segment + 0) * 4, tile - tl.load(segment + 8).to(tl.int32)


@triton.jit
def _address(address, segment, DTYPE: tl.constexpr):
    """Return the address of the segment's first value in a parameter or gradient."""
    return tl.load(address) + tl.load(segment + 1) * (DTYPE.primitive_bitwidth // 8)


@triton.jit
def _array(page, offset, DTYPE: tl.constexpr):
    """Return a pointer to the first element of an array of the page."""
    return (page + tl.load(offset)).to(tl.pointer_type(DTYPE))


# --- tiles of each format -----------------------------------------------------------------------------------------


@triton.jit
def _update_tile(
    segment,
    operand,
    tile,
    scalars,
    page,
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
                _float32_tile(segment, operand, tile, scalars, page, PARAM, GRAD, BLOCKS, BY_HAND, LAYOUT, False)
        if FORMATS & 2:
            if state_format == 1:
                _float32_tile(segment, operand, tile, scalars, page, PARAM, GRAD, BLOCKS, BY_HAND, LAYOUT, True)
        if FORMATS & 8:
            if state_format == 3:
                _tensorwise_tile(
                    segment, operand, tile, scalars, page, codec, absmax, PARAM, GRAD, BLOCKS, BY_HAND, LAYOUT
                )
    if FORMATS & 4:
        if state_format == 2:
            _blockwise_tile(segment, operand, tile, scalars, page, codec, PARAM, GRAD, BLOCKS, BY_HAND, LAYOUT)


@triton.jit
def _float32_tile(
    segment,
    operand,
    tile,
    scalars,
    page,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
    AMSGRAD: tl.constexpr,
):
    first, within, mask = _values_of_tile(segment, tile, BLOCKS, LAYOUT)
    param = _address(operand + 0, segment, PARAM)
    m_pointer = _pointers(page + tl.load(segment + 4), first, within, tl.float32, LAYOUT)
    v_pointer = _pointers(page + tl.load(segment + 5), first, within, tl.float32, LAYOUT)
    p = _load_float(param, first, within, mask, PARAM, LAYOUT)
    g = _load_float(_address(operand + 1, segment, GRAD), first, within, mask, GRAD, LAYOUT)
    m = tl.load(m_pointer, mask=mask, other=0.0)
    v = tl.load(v_pointer, mask=mask, other=0.0)

    m, v = _advance(m, v, g, scalars)
    tl.store(m_pointer, m, mask=mask)
    tl.store(v_pointer, v, mask=mask)

    if AMSGRAD:
        v_max_pointer = _pointers(page + tl.load(segment + 6), first, within, tl.float32, LAYOUT)
        v = tl.maximum(tl.load(v_max_pointer, mask=mask, other=0.0), v, propagate_nan=tl.PropagateNan.ALL)
        tl.store(v_max_pointer, v, mask=mask)

    p = _stepped(p, tl.div_rn(m, _denom(tl.sqrt_rn(v), scalars)), scalars)
    _store_float(param, first, within, mask, p, PARAM, LAYOUT, BY_HAND)


@triton.jit
def _blockwise_tile(
    segment,
    operand,
    tile,
    scalars,
    page,
    codec,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    if LAYOUT > 0:
        _update_blocks(segment, operand, tile, scalars, page, codec, PARAM, GRAD, BLOCKS, BY_HAND, LAYOUT)
    else:
        # One at a time: with the addresses of four, a thread would take half as many registers again.
        num_blocks = tl.load(segment + 12)
        for row in range(BLOCKS):
            block = tile * BLOCKS + row
            if block < num_blocks:
                _update_blocks(segment, operand, block, scalars, page, codec, PARAM, GRAD, 1, BY_HAND, LAYOUT)


@triton.jit
def _update_blocks(
    segment,
    operand,
    tile,
    scalars,
    page,
    codec,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    first, within, mask, has_block = _blocks_of_tile(segment, tile, BLOCKS, LAYOUT)
    block = tile * BLOCKS + tl.arange(0, BLOCKS)
    param = _address(operand + 0, segment, PARAM)
    m_pointer = _pointers(page + tl.load(segment + 4), first, within, tl.uint8, LAYOUT)
    root_pointer = _pointers(page + tl.load(segment + 5), first, within, tl.uint8, LAYOUT)
    m_absmax_pointer = _array(page, segment + 6, tl.float32) + block
    root_absmax_pointer = _array(page, segment + 7, tl.float32) + block
    p = _load_float(param, first, within, mask, PARAM, LAYOUT)
    g = _load_float(_address(operand + 1, segment, GRAD), first, within, mask, GRAD, LAYOUT)
    m_codes = tl.load(m_pointer, mask=mask, other=0)
    root_codes = tl.load(root_pointer, mask=mask, other=0)
    m_absmax = tl.load(m_absmax_pointer, mask=has_block, other=0.0)
    root_absmax = tl.load(root_absmax_pointer, mask=has_block, other=0.0)
    floor, min_root, max_root = load_constants(codec)

    m = decode(codec, m_codes, m_absmax[:, None], True, LAYOUT > 0)
    root = decode(codec, root_codes, root_absmax[:, None], False, LAYOUT > 0)

    u, m, root = _advance_8bit(m, root, g, scalars)
    _store_float(param, first, within, mask, _stepped(p, u, scalars), PARAM, LAYOUT, BY_HAND)

    m, root, m_absmax, root_absmax, is_special = keepable(m, root, min_root, max_root)
    m_absmax, root_absmax = floored(m_absmax, floor), floored(root_absmax, floor)
    tl.store(m_absmax_pointer, m_absmax, mask=has_block)
    tl.store(root_absmax_pointer, root_absmax, mask=has_block)

    m_codes = encode(codec, m, inverted(m_absmax)[:, None], True, LAYOUT > 0)
    tl.store(m_pointer, without_zeros(m_codes, m, is_special), mask=mask)
    root_codes = encode(codec, root, inverted(root_absmax)[:, None], False, LAYOUT > 0)
    tl.store(root_pointer, without_zeros(root_codes, root, is_special), mask=mask)


@triton.jit
def _tensorwise_tile(
    segment,
    operand,
    tile,
    scalars,
    page,
    codec,
    absmax,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    first, within, mask = _values_of_tile(segment, tile, BLOCKS, LAYOUT)
    param = _address(operand + 0, segment, PARAM)
    p = _load_float(param, first, within, mask, PARAM, LAYOUT)
    g = _load_float(_address(operand + 1, segment, GRAD), first, within, mask, GRAD, LAYOUT)
    floor, min_root, max_root = load_constants(codec)

    u, m, root = _advance_tensorwise(segment, first, within, mask, g, scalars, page, codec, LAYOUT)
    _store_float(param, first, within, mask, _stepped(p, u, scalars), PARAM, LAYOUT, BY_HAND)

    m, root, _, _, is_special = keepable(m, root, min_root, max_root)
    m_pointer = _pointers(page + tl.load(segment + 4), first, within, tl.uint8, LAYOUT)
    m_codes = encode(codec, m, inverted(floored(tl.load(absmax + 0), floor)), True, LAYOUT > 0)
    tl.store(m_pointer, without_zeros(m_codes, m, is_special), mask=mask)
    root_pointer = _pointers(page + tl.load(segment + 5), first, within, tl.uint8, LAYOUT)
    root_codes = encode(codec, root, inverted(floored(tl.load(absmax + 1), floor)), False, LAYOUT > 0)
    tl.store(root_pointer, without_zeros(root_codes, root, is_special), mask=mask)


@triton.jit
def _advance_tensorwise(segment, first, within, mask, g, scalars, page, codec, LAYOUT: tl.constexpr):
    """Return the update, and the new m and sqrt(v), of a tile of a tensor-wise segment."""
    m_codes = tl.load(_pointers(page + tl.load(segment + 4), first, within, tl.uint8, LAYOUT), mask=mask, other=0)
    root_codes = tl.load(_pointers(page + tl.load(segment + 5), first, within, tl.uint8, LAYOUT), mask=mask, other=0)
    m = decode(codec, m_codes, tl.load(_array(page, segment + 6, tl.float32)), True, LAYOUT > 0)
    root = decode(codec, root_codes, tl.load(_array(page, segment + 7, tl.float32)), False, LAYOUT > 0)
    return _advance_8bit(m, root, g, scalars)


# --- the arithmetic: the lines of `kernels.reference` -------------------------------------------------------------


@triton.jit
def _advance_8bit(m, root, g, scalars):
    m, v = _advance(m, root * root, g, scalars)
    root = tl.sqrt_rn(v)
    limit = tl.load(scalars + 9)
    u = tl.div_rn(m, _denom(root, scalars))
    return tl.clamp(u, -limit, limit, propagate_nan=tl.PropagateNan.ALL), m, root


@triton.jit
def _advance(m, v, g, scalars):
    g = g * tl.load(scalars + 8)
    m = m * tl.load(scalars + 0) + g * tl.load(scalars + 1)
    v = v * tl.load(scalars + 2) + (g * g) * tl.load(scalars + 3)
    return m, v


@triton.jit
def _denom(root, scalars):
    return root * tl.load(scalars + 7) + tl.load(scalars + 4)


@triton.jit
def _stepped(p, u, scalars):
    return p * tl.load(scalars + 5) - u * tl.load(scalars + 6)


# --- where a tile lies --------------------------------------------------------------------------------------------


@triton.jit
def _layout(segment, operand, tile, page, PARAM: tl.constexpr, GRAD: tl.constexpr, BLOCKS: tl.constexpr):
    """Return the LAYOUT of a tile."""
    numel = tl.load(segment + 2)
    param, grad = _address(operand + 0, segment, PARAM), _address(operand + 1, segment, GRAD)
    arrays = tl.load(segment + 4) | tl.load(segment + 5) | tl.load(segment + 6) | tl.load(segment + 7)
    misaligned = (param & (PARAM.primitive_bitwidth // 2 - 1)) | (grad & (GRAD.primitive_bitwidth // 2 - 1))
    misaligned |= (arrays | page) & 15

    is_one_row = tl.load(segment + 9) == 1 << 30
    is_whole = is_one_row & ((tile + 1).to(tl.int64) * (BLOCKS * 256) <= numel)
    is_in_fours = (tl.load(segment + 3) == 2) & (((numel | tl.load(segment + 10)) & 3) == 0)
    return tl.where(misaligned != 0, 0, tl.where(is_whole, 2, tl.where(is_in_fours, 1, 0)))


@triton.jit
def _values_of_tile(segment, tile, BLOCKS: tl.constexpr, LAYOUT: tl.constexpr):
    """Return the tile's first value, how far each of its values is from there, and which of them the segment has.

    For segments without rows, and for tiles that are whole.
    """
    first = tile.to(tl.int64) * (BLOCKS * 256)
    within = tl.arange(0, BLOCKS)[:, None] * 256 + tl.arange(0, 256)[None, :]
    mask = tl.full([BLOCKS, 256], True, tl.int1) if LAYOUT == 2 else first + within < tl.load(segment + 2)
    return first, within, mask


@triton.jit
def _blocks_of_tile(segment, tile, BLOCKS: tl.constexpr, LAYOUT: tl.constexpr):
    """Return what `_values_of_tile` does for blocks of at most 256 values of a row, and which blocks there are."""
    if LAYOUT == 2:
        first, within, mask = _values_of_tile(segment, tile, BLOCKS, LAYOUT)
        has_block = tl.full([BLOCKS], True, tl.int1)
    else:
        numel, width, first_column = tl.load(segment + 2), tl.load(segment + 10), tl.load(segment + 11).to(tl.int32)
        blocks_per_row = tl.load(segment + 9).to(tl.int32)

        block = first_column + tile * BLOCKS
        row = block // blocks_per_row
        column = block - row * blocks_per_row
        first = row * width + (column - first_column) * 256

        block = column + tl.arange(0, BLOCKS)
        row = block // blocks_per_row
        offset = row * width + (block - row * blocks_per_row - column) * 256
        count = tl.minimum(width - (block - row * blocks_per_row) * 256, numel - first - offset)
        count = tl.minimum(count, 256).to(tl.int32)
        if LAYOUT == 1:
            offset = tl.multiple_of(offset, 4)
            count = tl.multiple_of(count, 4)
        lane = tl.arange(0, 256)[None, :]
        within = offset[:, None] + lane
        mask = lane < count[:, None]
        has_block = count > 0
    return first, within, mask, has_block


@triton.jit
def _pointers(address, first, within, DTYPE: tl.constexpr, LAYOUT: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE)) + first
    if LAYOUT == 2:
        pointer = tl.multiple_of(pointer, 16 if DTYPE.primitive_bitwidth > 8 else 8)
    if LAYOUT == 1:
        pointer = tl.multiple_of(pointer, DTYPE.primitive_bitwidth // 2)
    return pointer + within


@triton.jit
def _load_float(address, first, within, mask, DTYPE: tl.constexpr, LAYOUT: tl.constexpr):
    """Return values of any of the three element types as float32."""
    if DTYPE == tl.bfloat16:
        bits = tl.load(_pointers(address, first, within, tl.uint16, LAYOUT), mask=mask, other=0)
        values = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        values = tl.load(_pointers(address, first, within, DTYPE, LAYOUT), mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def _store_float(
    address, first, within, mask, values, DTYPE: tl.constexpr, LAYOUT: tl.constexpr, BY_HAND: tl.constexpr
):
    """Store float32 values in any of the three element types, rounded to nearest even."""
    if DTYPE == tl.bfloat16 and BY_HAND:
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        tl.store(_pointers(address, first, within, tl.uint16, LAYOUT), bits.to(tl.uint16), mask=mask)
    else:
        tl.store(_pointers(address, first, within, DTYPE, LAYOUT), values.to(DTYPE), mask=mask)
