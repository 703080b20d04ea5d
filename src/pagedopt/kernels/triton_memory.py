"""Where the values of a tile lie in memory, and how they are loaded and stored: see LAYOUT in `triton_page`."""

import triton
import triton.language as tl


@triton.jit
def values_of_tile(segment, tile, BLOCKS: tl.constexpr, LAYOUT: tl.constexpr):
    """Return the tile's first value, how far each of its values is from there, and which of them the segment has.

    For segments without rows, and for tiles that are whole.
    """
    first = tile.to(tl.int64) * (BLOCKS * 256)
    within = tl.arange(0, BLOCKS)[:, None] * 256 + tl.arange(0, 256)[None, :]
    mask = tl.full([BLOCKS, 256], True, tl.int1) if LAYOUT == 2 else first + within < tl.load(segment + 2)
    return first, within, mask


@triton.jit
def blocks_of_tile(segment, tile, BLOCKS: tl.constexpr, LAYOUT: tl.constexpr):
    """Return what `values_of_tile` does for blocks of at most 256 values of a row, and which blocks there are."""
    if LAYOUT == 2:
        first, within, mask = values_of_tile(segment, tile, BLOCKS, LAYOUT)
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
def pointers(address, first, within, DTYPE: tl.constexpr, LAYOUT: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE)) + first
    if LAYOUT == 2:
        pointer = tl.multiple_of(pointer, 16 if DTYPE.primitive_bitwidth > 8 else 8)
    if LAYOUT == 1:
        pointer = tl.multiple_of(pointer, DTYPE.primitive_bitwidth // 2)
    return pointer + within


@triton.jit
def load_float(address, first, within, mask, DTYPE: tl.constexpr, LAYOUT: tl.constexpr):
    """Return values of any of the three element types as float32."""
    if DTYPE == tl.bfloat16:
        bits = tl.load(pointers(address, first, within, tl.uint16, LAYOUT), mask=mask, other=0)
        values = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        values = tl.load(pointers(address, first, within, DTYPE, LAYOUT), mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def store_float(address, first, within, mask, values, DTYPE: tl.constexpr, LAYOUT: tl.constexpr, BY_HAND: tl.constexpr):
    """Store float32 values in any of the three element types, rounded to nearest even."""
    if DTYPE == tl.bfloat16 and BY_HAND:
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        tl.store(pointers(address, first, within, tl.uint16, LAYOUT), bits.to(tl.uint16), mask=mask)
    else:
        tl.store(pointers(address, first, within, DTYPE, LAYOUT), values.to(DTYPE), mask=mask)


@triton.jit
def load_codes(address, first, within, mask, LAYOUT: tl.constexpr):
    """Return codes, 0..255, as int32."""
    return tl.load(pointers(address, first, within, tl.uint8, LAYOUT), mask=mask, other=0).to(tl.int32)


@triton.jit
def store_codes(address, first, within, mask, codes, values, is_special, LAYOUT: tl.constexpr):
    """Store codes of `values`, with that of zero where these are; none are unless the tile `is_special`.

    The store is in the branch, or every code would be selected for the few that have to be.
    """
    if is_special:
        _store_packed(address, first, within, mask, tl.where(values == 0, 0, codes), LAYOUT)
    else:
        _store_packed(address, first, within, mask, codes, LAYOUT)


@triton.jit
def _store_packed(address, first, within, mask, codes, LAYOUT: tl.constexpr):
    if LAYOUT == 2:
        pointer = tl.multiple_of((address + first).to(tl.pointer_type(tl.int32)), 8)
        even, odd = tl.split(tl.reshape(codes, [codes.shape[0], 64, 2, 2]))
        low, high = tl.split(even + odd * 256)
        word = tl.arange(0, codes.shape[0])[:, None] * 64 + tl.arange(0, 64)[None, :]
        tl.store(pointer + word, low + high * 65536)
    else:
        tl.store(pointers(address, first, within, tl.uint8, LAYOUT), codes.to(tl.uint8), mask=mask)
