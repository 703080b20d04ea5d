"""Kernels that run single device functions of the Triton backend, for its tests."""

import triton
import triton.language as tl

from pagedopt.kernels.triton_codec import encode, load_encoders
from pagedopt.kernels.triton_page import _find, _layout


@triton.jit
def encode_blocks(codec, values, codes, SIGNED: tl.constexpr):
    """Encode block `program_id(0)` of 256 float32 values in [-1, 1], whose absmax is 1."""
    index = tl.program_id(0) * 256 + tl.arange(0, 256)[None, :]
    m_thresholds, m_slopes, root_thresholds, root_slopes = load_encoders(codec)
    x = tl.load(values + index)
    if SIGNED:
        code = encode(codec, x, 1.0, m_thresholds, m_slopes, True)
    else:
        code = encode(codec, x, 1.0, root_thresholds, root_slopes, False)
    tl.store(codes + index, code)


@triton.jit
def layout_of_tile(tiles, segments, operands, frame, layouts, BLOCKS: tl.constexpr):
    """Write the LAYOUT of tile `program_id(0)`, of bfloat16 parameters with float32 gradients."""
    segment, operand, tile = _find(tiles, segments, operands)
    layout = _layout(segment, operand, tile, frame.to(tl.int64), tl.bfloat16, tl.float32, BLOCKS)
    tl.store(layouts + tl.program_id(0), layout)
