"""The 8-bit codecs on the GPU: the float32 operations of `codecs.blockwise`, in its order, hence its bits.

What `codecs.codebook` defines comes in one table per device, so nothing of it is compiled in:

    byte 0        256 float32   value of each signed code, in the order of the int8
         1024     256 float32   value of each unsigned code, in the order of the byte read as an int8
         2048     128 int64     signed encoder, by exponent of x: threshold | piece << 32
         3072     128 int64     unsigned encoder, the same
         4096       8 int64     signed encoder, by piece: slope | offset << 32
         4160       8 int64     unsigned encoder, the same
         4224       3 float32   FLOOR, MIN_ROOT, MAX_ROOT

Between two thresholds of the encoder lies a power of two, so the exponent of x and one comparison give its piece: two
look-ups in place of a search. Look-ups go through shared memory (`tl.gather`), the large ones without bank conflicts
to speak of, the small ones with none.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedopt.codecs.blockwise import FLOOR, MAX_ROOT, MIN_ROOT
from pagedopt.codecs.codebook import pieces, values_by_code

_EXPONENTS = 128
"""The biased exponents of x in [0, 2)."""


@lru_cache
def codec_table(device: torch.device) -> Tensor:
    """Return the table above, uint8, on `device`. Do not write to it: it is shared."""
    arrays = [values_by_code(signed=signed).roll(128) for signed in (True, False)]
    arrays += [_thresholds_by_exponent(signed=signed) for signed in (True, False)]
    arrays += [_lines_by_piece(signed=signed) for signed in (True, False)]
    arrays.append(torch.tensor([FLOOR, MIN_ROOT, MAX_ROOT], dtype=torch.float32, device="cpu"))
    return torch.cat([array.view(torch.uint8) for array in arrays]).to(device)


def _thresholds_by_exponent(*, signed: bool) -> Tensor:
    """Return for each exponent the one threshold among its floats (infinity if there is none), and how many thresholds
    are at or below its first float.
    """
    thresholds = pieces(signed=signed).thresholds
    first = (torch.arange(_EXPONENTS + 1, dtype=torch.int32, device="cpu") << 23).view(torch.float32)
    piece = torch.bucketize(first, thresholds, right=True)
    inside = piece.diff()
    assert int(inside.max()) == 1, "two thresholds share an exponent"
    threshold = torch.where(inside == 1, torch.nn.functional.pad(thresholds, (0, 1))[piece[:-1]], torch.inf)
    return _pairs(threshold.view(torch.int32), piece[:-1])


def _lines_by_piece(*, signed: bool) -> Tensor:
    p = pieces(signed=signed)
    return _pairs(p.slope.view(torch.int32), p.offset.view(torch.int32))


def _pairs(low: Tensor, high: Tensor) -> Tensor:
    return (low.long() & 0xFFFFFFFF) | (high.long() << 32)


@triton.jit
def load_values(table):
    """Return the tables that `decode` needs: of signed and of unsigned codes."""
    values = table.to(tl.pointer_type(tl.float32)) + tl.arange(0, 256)
    return tl.load(values), tl.load(values + 256)


@triton.jit
def load_encoders(table):
    """Return the tables that `encode` needs: thresholds and lines of signed, then of unsigned codes."""
    thresholds = (table + 2048).to(tl.pointer_type(tl.int64)) + tl.arange(0, 128)
    lines = (table + 4096).to(tl.pointer_type(tl.int64)) + tl.arange(0, 8)
    return tl.load(thresholds), tl.load(lines), tl.load(thresholds + 128), tl.load(lines + 8)


@triton.jit
def load_constants(table):
    """Return FLOOR, MIN_ROOT and MAX_ROOT."""
    constants = (table + 4224).to(tl.pointer_type(tl.float32))
    return tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)


@triton.jit
def decode(values, codes, absmax):
    """Return the float32 values of int8 `codes` [blocks, 256] in blocks of `absmax` (broadcast to them)."""
    return _look_up(values, codes.to(tl.int32) + 128) * absmax


@triton.jit
def encode(values, absmax, thresholds, lines, SIGNED: tl.constexpr):
    """Return the int8 codes of finite `values` [blocks, 256] in blocks of `absmax` (floored, broadcast to them)."""
    x = tl.abs(values) * tl.where(absmax > 0, tl.div_rn(1.0, absmax), 0.0)

    threshold = _look_up(thresholds, x.to(tl.int32, bitcast=True) >> 23)
    piece = (threshold >> 32).to(tl.int32) + (x >= _low_float(threshold)).to(tl.int32)
    line = _look_up(lines, piece)
    code = tl.minimum(x * _low_float(line) + _low_float(line >> 32), _last_code(piece, SIGNED))

    if SIGNED:
        code = tl.maximum(_with_sign_of(code, values).to(tl.int32), -127)
    return tl.where(values == 0, 0, code.to(tl.int32)).to(tl.int8)


@triton.jit
def _last_code(piece, SIGNED: tl.constexpr):
    """Return 2^(piece + 1) - 1, or 2^(piece + 2) - 2 of unsigned codes: the last piece ends before that anyway."""
    step: tl.constexpr = 1 if SIGNED else 2
    return ((piece + (127 + step)) << 23).to(tl.float32, bitcast=True) - step


@triton.jit
def _with_sign_of(size, value):
    sign = value.to(tl.int32, bitcast=True) & -0x80000000
    return (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _low_float(pair):
    return pair.to(tl.int32).to(tl.float32, bitcast=True)


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
