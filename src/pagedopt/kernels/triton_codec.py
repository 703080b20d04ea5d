"""The 8-bit codecs on the GPU: the float32 operations of `codecs.blockwise`, in its order, hence its bits.

What `codecs` defines comes in one table per device, so that nothing of it is compiled in:

byte 0      256 float32   value of each signed code, in the order of the int8
     1024   256 float32   value of each unsigned code, in the order of the byte read as an int8
     2048    32 int64     signed encoder, by exponent of x, from that of SMALLEST on: threshold | piece << 32
     2304    32 int64     unsigned encoder, the same
     2560     8 float32   signed encoder, by piece: slope
     2592     8 float32   unsigned encoder, the same
     2624     6 float32   FLOOR, MIN_ROOT, MAX_ROOT, SMALLEST, OFFSET, BELOW_TWO

Between two thresholds of the encoder lies a power of two, so the exponent of x and one comparison give its piece: two
look-ups in place of a search. Look-ups go through shared memory (`tl.gather`).
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedopt.codecs.blockwise import FLOOR, MAX_ROOT, MIN_ROOT
from pagedopt.codecs.codebook import BELOW_TWO, OFFSET, SMALLEST, pieces, values_by_code

_FIRST_EXPONENT, _NUM_EXPONENTS = 127 - 22, 32
"""Biased exponents of x, from SMALLEST = 2^-22 to a little over 1."""


@lru_cache
def codec_table(device: torch.device) -> Tensor:
    """Return the table above, uint8, on `device`. Do not write to it: it is shared."""
    signed, unsigned = pieces(signed=True), pieces(signed=False)
    arrays = [
        values_by_code(signed=True).roll(128),
        values_by_code(signed=False).roll(128),
        _thresholds_by_exponent(signed.thresholds),
        _thresholds_by_exponent(unsigned.thresholds),
        signed.slope,
        unsigned.slope,
        torch.tensor([FLOOR, MIN_ROOT, MAX_ROOT, SMALLEST, OFFSET, BELOW_TWO], dtype=torch.float32, device="cpu"),
    ]
    return torch.cat([array.view(torch.uint8) for array in arrays]).to(device)


def _thresholds_by_exponent(thresholds: Tensor) -> Tensor:
    """Return for each exponent the one threshold among its floats (infinity if there is none), and how many thresholds
    are at or below its first float.
    """
    exponents = torch.arange(_FIRST_EXPONENT, _FIRST_EXPONENT + _NUM_EXPONENTS + 1, dtype=torch.int32, device="cpu")
    piece = torch.bucketize((exponents << 23).view(torch.float32), thresholds, right=True)
    is_inside = piece.diff() == 1
    assert int(piece.diff().max()) == 1, "two thresholds share an exponent"
    threshold = torch.where(is_inside, torch.nn.functional.pad(thresholds, (0, 1))[piece[:-1]], torch.inf)
    return threshold.view(torch.int32).long() | (piece[:-1] << 32)


@triton.jit
def load_values(table):
    """Return the tables that `decode` needs: of signed and of unsigned codes."""
    values = table.to(tl.pointer_type(tl.float32)) + tl.arange(0, 256)
    return tl.load(values), tl.load(values + 256)


@triton.jit
def load_encoders(table):
    """Return the tables that `encode` needs: thresholds and slopes of signed, then of unsigned codes."""
    thresholds = (table + 2048).to(tl.pointer_type(tl.int64)) + tl.arange(0, 32)
    slopes = (table + 2560).to(tl.pointer_type(tl.float32)) + tl.arange(0, 8)
    return tl.load(thresholds), tl.load(slopes), tl.load(thresholds + 32), tl.load(slopes + 8)


@triton.jit
def load_constants(table):
    """Return FLOOR, MIN_ROOT and MAX_ROOT."""
    constants = (table + 2624).to(tl.pointer_type(tl.float32))
    return tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)


@triton.jit
def decode(values, codes, absmax):
    """Return the float32 values of int8 `codes` [blocks, 256] in blocks of `absmax` (broadcast to them)."""
    return _look_up(values, codes.to(tl.int32) + 128) * absmax


@triton.jit
def encode(table, values, absmax, thresholds, slopes, SIGNED: tl.constexpr):
    """Return the int8 codes of finite `values` [blocks, 256] in blocks of `absmax` (floored, broadcast to them)."""
    constants = (table + 2624).to(tl.pointer_type(tl.float32))
    smallest, offset, below_two = tl.load(constants + 3), tl.load(constants + 4), tl.load(constants + 5)
    x = tl.maximum(tl.abs(values) * tl.where(absmax > 0, tl.div_rn(1.0, absmax), 0.0), smallest)

    threshold = _look_up(thresholds, (x.to(tl.int32, bitcast=True) >> 23) - 105)
    piece = (threshold >> 32).to(tl.int32) + (x >= threshold.to(tl.int32).to(tl.float32, bitcast=True)).to(tl.int32)
    position = tl.minimum(x * _look_up(slopes, piece) + offset, below_two)

    # A piece has 2^piece values, unsigned twice as many. Codes are rounded towards zero, whatever their sign.
    if SIGNED:
        size = position * _power_of_two(piece)
        code = tl.maximum(_with_sign_of(size, values).to(tl.int32), -127)
    else:
        code = (position * _power_of_two(piece + 1)).to(tl.int32) - 1
    return tl.where(values == 0, 0, code).to(tl.int8)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _with_sign_of(size, value):
    sign = value.to(tl.int32, bitcast=True) & -0x80000000
    return (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _look_up(array, index):
    """Return `array[index]` for an `index` of two dimensions."""
    flat = tl.gather(array, tl.reshape(index, [index.shape[0] * index.shape[1]]), 0)
    return tl.reshape(flat, [index.shape[0], index.shape[1]])


@triton.jit
def keepable(m, root, min_root, max_root):
    """Return both moments as `codecs.blockwise.keepable` does, and the largest size of each block.

    The bits of a size order as it does, infinity above every number and NaN above that, so the largest of a tile tells
    whether it has any of them. It hardly ever does, and then is spared the rest.
    """
    root = tl.where((m != 0) & (root == 0), min_root, root)
    m_bits, root_bits = _largest_bits(m), _largest_bits(root)

    if tl.max(tl.maximum(m_bits, root_bits), 0) >= 0x7F800000:
        finite = tl.abs(m) < float("inf")
        m = tl.where(finite & (root < float("inf")), m, 0.0)
        root = tl.where(root != root, 0.0, root)
        root = tl.where(finite, tl.minimum(root, max_root), 0.0)
        m_bits, root_bits = _largest_bits(m), _largest_bits(root)

    return m, root, m_bits.to(tl.float32, bitcast=True), root_bits.to(tl.float32, bitcast=True)


@triton.jit
def _largest_bits(values):
    return tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def floored(absmax, floor):
    """Return the absmax to store: zero where it is zero, else at least `floor`."""
    return tl.where(absmax > 0, tl.maximum(absmax, floor), 0.0)
