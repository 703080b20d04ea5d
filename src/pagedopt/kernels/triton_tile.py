"""The update of one tile of each format: `kernels.reference`, operation by operation, on whatever LAYOUT says.

32-bit tiles are worked at four blocks at a time, and so are 8-bit ones whose look-ups do not go through shared memory:
that keeps fewer registers.
"""

import triton
import triton.language as tl

from pagedopt.kernels.triton_codec import decode, encode, floored, inverted, keepable
from pagedopt.kernels.triton_memory import (
    blocks_of_tile,
    load_codes,
    load_float,
    pointers,
    store_codes,
    store_float,
    values_of_tile,
)


@triton.jit
def num_parts(segment, tile, BLOCKS: tl.constexpr):
    """Return how many parts, of four blocks each, a tile has."""
    num_blocks = tl.load(segment + 12).to(tl.int32) - tile * BLOCKS
    return (tl.minimum(num_blocks, BLOCKS) + 3) // 4


@triton.jit
def float32_tile(
    segment,
    tile,
    param,
    grad,
    field_0,
    field_1,
    field_2,
    scalars,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
    AMSGRAD: tl.constexpr,
):
    part = tile * (BLOCKS // 4)
    end = part + num_parts(segment, tile, BLOCKS)
    while part < end:
        _update_float32(
            segment, part, param, grad, field_0, field_1, field_2, scalars, PARAM, GRAD, BY_HAND, LAYOUT, AMSGRAD
        )
        part += 1


@triton.jit
def _update_float32(
    segment,
    part,
    param,
    grad,
    field_0,
    field_1,
    field_2,
    scalars,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
    AMSGRAD: tl.constexpr,
):
    first, within, mask = values_of_tile(segment, part, 4, LAYOUT)
    m_pointer = pointers(field_0, first, within, tl.float32, LAYOUT)
    v_pointer = pointers(field_1, first, within, tl.float32, LAYOUT)
    p = load_float(param, first, within, mask, PARAM, LAYOUT)
    g = load_float(grad, first, within, mask, GRAD, LAYOUT)
    m = tl.load(m_pointer, mask=mask, other=0.0)
    v = tl.load(v_pointer, mask=mask, other=0.0)

    m, v = _advance(m, v, g, scalars)
    tl.store(m_pointer, m, mask=mask)
    tl.store(v_pointer, v, mask=mask)

    if AMSGRAD:
        v_max_pointer = pointers(field_2, first, within, tl.float32, LAYOUT)
        v = tl.maximum(tl.load(v_max_pointer, mask=mask, other=0.0), v, propagate_nan=tl.PropagateNan.ALL)
        tl.store(v_max_pointer, v, mask=mask)

    p = _stepped(p, tl.div_rn(m, _denom(tl.sqrt_rn(v), scalars)), scalars)
    store_float(param, first, within, mask, p, PARAM, LAYOUT, BY_HAND)


@triton.jit
def blockwise_tile(
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
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    if LAYOUT > 0:
        _update_blockwise(
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
    else:
        part = tile * (BLOCKS // 4)
        end = part + num_parts(segment, tile, BLOCKS)
        while part < end:
            _update_blockwise(
                segment,
                part,
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
                4,
                BY_HAND,
                LAYOUT,
            )
            part += 1


@triton.jit
def _update_blockwise(
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
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    first, within, mask, has_block = blocks_of_tile(segment, tile, BLOCKS, LAYOUT)
    block = tile * BLOCKS + tl.arange(0, BLOCKS)
    m_absmax_pointer = field_2.to(tl.pointer_type(tl.float32)) + block
    root_absmax_pointer = field_3.to(tl.pointer_type(tl.float32)) + block
    p = load_float(param, first, within, mask, PARAM, LAYOUT)
    g = load_float(grad, first, within, mask, GRAD, LAYOUT)
    m_codes = load_codes(field_0, first, within, mask, LAYOUT)
    root_codes = load_codes(field_1, first, within, mask, LAYOUT)
    m_absmax = tl.load(m_absmax_pointer, mask=has_block, other=0.0)
    root_absmax = tl.load(root_absmax_pointer, mask=has_block, other=0.0)

    m = decode(codec, m_codes, m_absmax[:, None], True, LAYOUT > 0)
    root = decode(codec, root_codes, root_absmax[:, None], False, LAYOUT > 0)

    u, m, root = _advance_8bit(m, root, g, scalars)
    store_float(param, first, within, mask, _stepped(p, u, scalars), PARAM, LAYOUT, BY_HAND)

    m, root, m_absmax, root_absmax, is_special = keepable(m, root, mask)
    m_absmax, root_absmax = floored(m_absmax), floored(root_absmax)
    tl.store(m_absmax_pointer, m_absmax, mask=has_block)
    tl.store(root_absmax_pointer, root_absmax, mask=has_block)

    m_codes = encode(codec, m, inverted(m_absmax)[:, None], True, LAYOUT > 0)
    store_codes(field_0, first, within, mask, m_codes, m, is_special, LAYOUT)
    root_codes = encode(codec, root, inverted(root_absmax)[:, None], False, LAYOUT > 0)
    store_codes(field_1, first, within, mask, root_codes, root, is_special, LAYOUT)


@triton.jit
def tensorwise_tile(
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
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    if LAYOUT == 2:
        _update_tensorwise(
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
    else:
        part = tile * (BLOCKS // 4)
        end = part + num_parts(segment, tile, BLOCKS)
        while part < end:
            _update_tensorwise(
                segment,
                part,
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
                4,
                BY_HAND,
                LAYOUT,
            )
            part += 1


@triton.jit
def _update_tensorwise(
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
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    BY_HAND: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    first, within, mask = values_of_tile(segment, tile, BLOCKS, LAYOUT)
    p = load_float(param, first, within, mask, PARAM, LAYOUT)
    g = load_float(grad, first, within, mask, GRAD, LAYOUT)

    u, m, root = _advance_tensorwise(first, within, mask, g, field_0, field_1, field_2, field_3, scalars, codec, LAYOUT)
    store_float(param, first, within, mask, _stepped(p, u, scalars), PARAM, LAYOUT, BY_HAND)

    m, root, _, _, is_special = keepable(m, root, mask)
    m_codes = encode(codec, m, inverted(floored(tl.load(absmax + 0))), True, LAYOUT > 0)
    store_codes(field_0, first, within, mask, m_codes, m, is_special, LAYOUT)
    root_codes = encode(codec, root, inverted(floored(tl.load(absmax + 1))), False, LAYOUT > 0)
    store_codes(field_1, first, within, mask, root_codes, root, is_special, LAYOUT)


@triton.jit
def measure_tensorwise(
    segment,
    tile,
    grad,
    field_0,
    field_1,
    field_2,
    field_3,
    scalars,
    codec,
    absmax,
    GRAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    first, within, mask = values_of_tile(segment, tile, BLOCKS, LAYOUT)
    g = load_float(grad, first, within, mask, GRAD, LAYOUT)

    _, m, root = _advance_tensorwise(first, within, mask, g, field_0, field_1, field_2, field_3, scalars, codec, LAYOUT)
    _, _, m_absmax, root_absmax, _ = keepable(m, root, mask)

    # The bits of floats that are not negative order as they do, and the largest is the same in any order.
    bits = absmax.to(tl.pointer_type(tl.int32))
    tl.atomic_max(bits + 0, tl.max(m_absmax, 0).to(tl.int32, bitcast=True))
    tl.atomic_max(bits + 1, tl.max(root_absmax, 0).to(tl.int32, bitcast=True))


@triton.jit
def _advance_tensorwise(
    first, within, mask, g, field_0, field_1, field_2, field_3, scalars, codec, LAYOUT: tl.constexpr
):
    """Return the update, and the new m and sqrt(v), of a tile of a tensor-wise segment."""
    m_codes = load_codes(field_0, first, within, mask, LAYOUT)
    root_codes = load_codes(field_1, first, within, mask, LAYOUT)

    m = decode(codec, m_codes, tl.load(field_2.to(tl.pointer_type(tl.float32))), True, LAYOUT > 0)
    root = decode(codec, root_codes, tl.load(field_3.to(tl.pointer_type(tl.float32))), False, LAYOUT > 0)
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
