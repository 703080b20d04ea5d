"""The 8-bit codecs on the GPU: the float32 operations of `codecs.blockwise`, in its order, hence its bits.

What `codecs` defines comes in one table per device, but for four numbers:

byte 0       256 float32   value of each signed code, in the order of the code read as an unsigned byte
     1024    256 float32   value of each unsigned code
     2048   2048 int32     signed encoder, a word a cell, from that of SMALLEST = 2^-22 on
    10240   4096 int32     unsigned encoder, the same

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

assert (SMALLEST, FLOOR, MIN_ROOT, MAX_ROOT) == (
    2.384185791015625e-07,
    7.888609052210118e-31,
    3.743392130574644e-23,
    2e19,
), "the kernels have these numbers"

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
def decode(table, codes, absmax, SIGNED: tl.constexpr, STAGED: tl.constexpr):
    """Return the float32 values of `codes` (int32) [blocks, 256] in blocks of `absmax` (broadcast to them)."""
    values = (table if SIGNED else table + 1024).to(tl.pointer_type(tl.float32))
    return _look_up(values, codes, 256, STAGED) * absmax


@triton.jit
def encode(table, values, inverse, SIGNED: tl.constexpr, STAGED: tl.constexpr):
    """Return the codes (int32, 0..255) of finite `values` [blocks, 256] that are not zero.

    Args:
        table: see `codec_table`.
        values: no larger than the absmax of their blocks.
        inverse: see `inverted`; broadcast to `values`.
        SIGNED: whether values have signs.
        STAGED: whether look-ups go through shared memory.
    """
    bits = tl.maximum(tl.abs(values) * inverse, 2.384185791015625e-07).to(tl.int32, bitcast=True)
    if SIGNED:
        words = (table + 2048).to(tl.pointer_type(tl.int32))
        code = (_look_up(words, (bits >> 17) - (105 << 6), 2048, STAGED) + bits) >> 17
        code = tl.where(values < 0, 256 - tl.minimum(code, 127), code)
    else:
        words = (table + 10240).to(tl.pointer_type(tl.int32))
        code = (_look_up(words, (bits >> 16) - (105 << 7), 4096, STAGED) + bits) >> 16
    return code


@triton.jit
def inverted(absmax):
    """Return what values are multiplied by to be encoded, of floored absmax."""
    return tl.where(absmax > 0, tl.div_rn(1.0, absmax), 0.0)


@triton.jit
def _look_up(array, index, SIZE: tl.constexpr, STAGED: tl.constexpr):
    """Return `array[index]` for an `index` of two dimensions."""
    if STAGED:
        flat = tl.gather(
            tl.load(tl.multiple_of(array + tl.arange(0, SIZE), [16])),
            tl.reshape(index, [index.shape[0] * index.shape[1]]),
            0,
        )
        found = tl.reshape(flat, [index.shape[0], index.shape[1]])
    else:
        found = tl.load(array + tl.minimum(index, SIZE - 1))
    return found


@triton.jit
def keepable(m, root, mask):
    """Return both moments as `codecs.blockwise.keepable` does, the largest size of each block, and whether there may
    be zeros.

    The bits of a size order as it does, infinity above every number and NaN above that. So the least and the largest of
    a tile tell whether it has any of these, or a zero where `mask` says that there is a value. It hardly ever does, and
    then is spared the rest.
    """
    m_size, root_size = _bits_of_size(m), root.to(tl.int32, bitcast=True)
    m_bits, root_bits = tl.max(m_size, 1), tl.max(root_size, 1)
    least = tl.min(tl.where(mask, tl.minimum(m_size, root_size), 1), 1)
    is_special = tl.max(((tl.maximum(m_bits, root_bits) >= 0x7F800000) | (least <= 0)).to(tl.int32), 0) > 0

    if is_special:
        root = tl.where((m != 0) & (root == 0), 3.743392130574644e-23, root)
        finite = tl.abs(m) < float("inf")
        m = tl.where(finite & (root < float("inf")), m, 0.0)
        root = tl.where(root != root, 0.0, root)
        root = tl.where(finite, tl.minimum(root, 2e19), 0.0)
        m_bits, root_bits = tl.max(_bits_of_size(m), 1), tl.max(_bits_of_size(root), 1)

    return m, root, m_bits.to(tl.float32, bitcast=True), root_bits.to(tl.float32, bitcast=True), is_special


@triton.jit
def _bits_of_size(values):
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def floored(absmax):
    """Return the absmax to store: zero where it is zero, else at least FLOOR."""
    return tl.where(absmax > 0, tl.maximum(absmax, 7.888609052210118e-31), 0.0)
