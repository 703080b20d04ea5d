"""The 8-bit codecs on the GPU: the float32 operations of `codecs.blockwise`, in its order, hence its bits.

What `codecs` defines comes in one table per device, so that nothing of it is compiled in:

byte 0       256 float32   value of each signed code, in the order of the code read as an unsigned byte
     1024    256 float32   value of each unsigned code
     2048   2048 int32     signed encoder, a word a cell, from that of SMALLEST = 2^-22 on
    10240   4096 int32     unsigned encoder, the same
    26624      4 float32   FLOOR, MIN_ROOT, MAX_ROOT, SMALLEST

To encode takes one look-up and one sum. Floats whose bits are equal but for the last SHIFT are a cell, and cells are so
narrow that inside of each the code rises at most once, by one. The word of a cell is made so that

    word + bits of x = code << SHIFT | how far x is beyond where the code last rose

Look-ups of a whole tile go through shared memory (STAGED: `tl.gather`), others through the cache.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedopt.codecs.blockwise import FLOOR, MAX_ROOT, MIN_ROOT
from pagedopt.codecs.blockwise import encode as encode_by_reference
from pagedopt.codecs.codebook import SMALLEST, values_by_code

_FIRST_EXPONENT, _NUM_EXPONENTS = 127 - 22, 22
"""Biased exponents of x below 1, from that of SMALLEST on. One more cell takes 1 and the little over it that is
rounding.
"""

_SHIFT = {True: 17, False: 16}
_NUM_WORDS = {True: 2048, False: 4096}
"""By whether codes are signed."""


@lru_cache
def codec_table(device: torch.device) -> Tensor:
    """Return the table above, uint8, on `device`. Do not write to it: it is shared."""
    arrays = [
        values_by_code(signed=True),
        values_by_code(signed=False),
        _words_by_cell(signed=True),
        _words_by_cell(signed=False),
        torch.tensor([FLOOR, MIN_ROOT, MAX_ROOT, SMALLEST], dtype=torch.float32, device="cpu"),
    ]
    return torch.cat([array.view(torch.uint8) for array in arrays]).to(device)


def _words_by_cell(*, signed: bool) -> Tensor:
    """Return the encoder's words, int32, and zeros for the cells that no x is in."""
    shift = _SHIFT[signed]
    num_cells = (_NUM_EXPONENTS << (23 - shift)) + 1
    first = (torch.arange(num_cells, device="cpu") + (_FIRST_EXPONENT << (23 - shift))) << shift
    code = _codes_of_bits(first, signed=signed)
    last = _codes_of_bits(first + (1 << shift) - 1, signed=signed)
    assert int((last - code).max()) == 1, "a cell has more than two codes"

    low, high = first - 1, first + (1 << shift)  # the code rises at a float above low and not above high
    for _ in range(shift + 1):
        middle = (low + high + 1) // 2
        is_risen = _codes_of_bits(middle.minimum(first + (1 << shift) - 1), signed=signed) > code
        is_risen |= middle == first + (1 << shift)
        low, high = torch.where(is_risen, low, middle), torch.where(is_risen, middle, high)
    words = ((code + 1) << shift) - high
    return torch.nn.functional.pad(words, (0, _NUM_WORDS[signed] - num_cells)).to(torch.int32)


def _codes_of_bits(bits: Tensor, *, signed: bool) -> Tensor:
    """Return the codes of floats from 2^-22 to a little over 1 in a block whose absmax is 1."""
    x = bits.to(torch.int32).view(torch.float32)
    return encode_by_reference(x, torch.ones((), device="cpu"), signed=signed).view(torch.uint8).long()


@triton.jit
def load_constants(table):
    """Return FLOOR, MIN_ROOT and MAX_ROOT."""
    constants = (table + 26624).to(tl.pointer_type(tl.float32))
    return tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)


@triton.jit
def decode(table, codes, absmax, SIGNED: tl.constexpr, STAGED: tl.constexpr):
    """Return the float32 values of uint8 `codes` [blocks, 256] in blocks of `absmax` (broadcast to them)."""
    values = (table if SIGNED else table + 1024).to(tl.pointer_type(tl.float32))
    return _look_up(values, codes.to(tl.int32), 256, STAGED) * absmax


@triton.jit
def encode(table, values, inverse, SIGNED: tl.constexpr, STAGED: tl.constexpr):
    """Return the uint8 codes of finite `values` [blocks, 256] that are not zero.

    Args:
        table: see `codec_table`.
        values: no larger than the absmax of their blocks.
        inverse: see `inverted`; broadcast to `values`.
        SIGNED: whether values have signs.
        STAGED: whether look-ups go through shared memory.
    """
    smallest = tl.load((table + 26624).to(tl.pointer_type(tl.float32)) + 3)
    bits = tl.maximum(tl.abs(values) * inverse, smallest).to(tl.int32, bitcast=True)
    if SIGNED:
        words = (table + 2048).to(tl.pointer_type(tl.int32))
        code = (_look_up(words, (bits >> 17) - (105 << 6), 2048, STAGED) + bits) >> 17
        code = tl.where(values < 0, -tl.minimum(code, 127), code)
    else:
        words = (table + 10240).to(tl.pointer_type(tl.int32))
        code = (_look_up(words, (bits >> 16) - (105 << 7), 4096, STAGED) + bits) >> 16
    return code.to(tl.uint8)


@triton.jit
def inverted(absmax):
    """Return what values are multiplied by to be encoded, of floored absmax."""
    return tl.where(absmax > 0, tl.div_rn(1.0, absmax), 0.0)


@triton.jit
def _look_up(array, index, SIZE: tl.constexpr, STAGED: tl.constexpr):
    """Return `array[index]` for an `index` of two dimensions."""
    if STAGED:
        staged = tl.load(tl.multiple_of(array, 16) + tl.arange(0, SIZE))
        flat = tl.gather(staged, tl.reshape(index, [index.shape[0] * index.shape[1]]), 0)
        found = tl.reshape(flat, [index.shape[0], index.shape[1]])
    else:
        found = tl.load(array + tl.minimum(index, SIZE - 1))
    return found


@triton.jit
def keepable(m, root, min_root, max_root):
    """Return both moments as `codecs.blockwise.keepable` does, the largest size of each block, and whether there may
    be zeros.

    The bits of a size order as it does, infinity above every number and NaN above that. So the least and the largest of
    a tile tell whether it has any of these, or a zero. It hardly ever does, and then is spared the rest.
    """
    m_bits, root_bits = _largest_bits(m), _largest_bits(root)
    least = tl.min(tl.minimum(tl.abs(m), root), 1)
    is_special = tl.max(((tl.maximum(m_bits, root_bits) >= 0x7F800000) | (least == 0)).to(tl.int32), 0) > 0

    if is_special:
        root = tl.where((m != 0) & (root == 0), min_root, root)
        finite = tl.abs(m) < float("inf")
        m = tl.where(finite & (root < float("inf")), m, 0.0)
        root = tl.where(root != root, 0.0, root)
        root = tl.where(finite, tl.minimum(root, max_root), 0.0)
        m_bits, root_bits = _largest_bits(m), _largest_bits(root)

    return m, root, m_bits.to(tl.float32, bitcast=True), root_bits.to(tl.float32, bitcast=True), is_special


@triton.jit
def _largest_bits(values):
    return tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def without_zeros(codes, values, is_special):
    """Return codes with that of zero where `values` are."""
    if is_special:
        codes = tl.where(values == 0, 0, codes.to(tl.int32)).to(tl.uint8)
    return codes


@triton.jit
def floored(absmax, floor):
    """Return the absmax to store: zero where it is zero, else at least `floor`."""
    return tl.where(absmax > 0, tl.maximum(absmax, floor), 0.0)
