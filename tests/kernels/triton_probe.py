"""Kernels that run single device functions of the Triton backend, for its tests."""

import triton
import triton.language as tl

from pagedopt.kernels.triton_codec import encode
from pagedopt.kernels.triton_page import _addresses, _find, _layout


@triton.jit
def encode_blocks(codec, values, codes, SIGNED: tl.constexpr, STAGED: tl.constexpr):
    """Encode block `program_id(0)` of 256 float32 values in [-1, 1] that are not zero, whose absmax is 1."""
    index = tl.program_id(0) * 256 + tl.arange(0, 256)[None, :]
    code = encode(codec, tl.load(values + index), 1.0, SIGNED, STAGED)
    tl.store(codes + index, code.to(tl.uint8))


@triton.jit
def layout_of_tile(tiles, segments, operands, frame, layouts, BLOCKS: tl.constexpr):
    """Write the LAYOUT of tile `program_id(0)`, of bfloat16 parameters with float32 gradients."""
    segment, operand, tile = _find(tiles, segments, operands)
    param, grad, field_0, field_1, field_2, field_3 = _addresses(segment, operand, frame, tl.bfloat16, tl.float32)
    layout = _layout(segment, tile, param, grad, field_0, field_1, field_2, field_3, tl.bfloat16, tl.float32, BLOCKS)
    tl.store(layouts + tl.program_id(0), layout)
