"""The sum of squares of a gradient on the GPU, in the order of `kernels.norm`, hence with its bits."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["values", "sums", "numel"])
def sum_chunk(values, sums, numel, DTYPE: tl.constexpr):
    """Write to `sums` (float64) the sum of squares of chunk `program_id(0)`: 16 rows of 2048 values."""
    lane = tl.arange(0, 2048)
    first = tl.program_id(0).to(tl.int64) * 32768
    total = tl.zeros([2048], tl.float64)
    for row in range(16):
        index = first + row * 2048 + lane
        value = _load(values + index, index < numel, DTYPE).to(tl.float64)
        total += value * value

    for level in tl.static_range(11):
        total = tl.sum(tl.reshape(total, [2, 1024 >> level]), 0)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _load(pointer, mask, DTYPE: tl.constexpr):
    if DTYPE == tl.bfloat16:
        bits = tl.load(pointer.to(tl.pointer_type(tl.uint16)), mask=mask, other=0)
        value = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = tl.load(pointer, mask=mask, other=0.0)
    return value


@triton.jit(do_not_specialize=["sums", "size"])
def fold_sums(sums, size):
    """Add up `sums` (float64, `size` of them, a power of two) into the first: the first half plus the second."""
    lane = tl.arange(0, 1024)
    while size > 1:
        size = size // 2
        index = lane
        while tl.min(index, 0) < size:
            low = tl.load(sums + index, mask=index < size, other=0.0)
            high = tl.load(sums + size + index, mask=index < size, other=0.0)
            tl.store(sums + index, low + high, mask=index < size)
            index += 1024
        tl.debug_barrier()
