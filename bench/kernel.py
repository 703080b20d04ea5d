"""`python -m bench.kernel`: what the native kernels take by themselves, on one thread, from the cache and from memory.

The first is what arithmetic allows; the second less the first is what memory adds. There is no engine around the call.
"""

from __future__ import annotations

import time

import torch
from rich.console import Console
from torch import Tensor

from pagedopt.codecs.base import FIELDS, Per, StateFormat
from pagedopt.kernels.args import Column, Operands, Scalar, new_absmax
from pagedopt.kernels.native import TARGETS, NativeKernel

IN_CACHE, IN_MEMORY = 1 << 15, 1 << 24
"""Values: with all that belongs to them 1 MiB at most, and 160 MiB at least."""

FORMATS = {"32-bit": StateFormat.FLOAT32, "8-bit": StateFormat.BLOCKWISE8}
DTYPES = (torch.float32, torch.bfloat16)
_BLOCK = 256
_SAMPLES = 15


def nanoseconds(kernel: NativeKernel, state_format: StateFormat, dtype: torch.dtype, numel: int) -> float:
    """Return the least time of an update by one thread, in ns per value; of several, as others only ever add to it."""
    segments, frame = page_of(state_format, numel)
    operands = operands_of(dtype, numel)
    repeats = max(IN_MEMORY // 4 // numel, 1)
    kernel.update(segments, frame, operands)
    return min(_seconds(kernel, segments, frame, operands, repeats) for _ in range(_SAMPLES)) / numel * 1e9


def _seconds(kernel: NativeKernel, segments: Tensor, frame: Tensor, operands: Operands, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        kernel.update(segments, frame, operands)
    return (time.perf_counter() - begin) / repeats


def page_of(state_format: StateFormat, numel: int) -> tuple[Tensor, Tensor]:
    """Return the segment table of a page with one segment, and its frame."""
    row = [0] * len(Column)
    row[Column.NUMEL] = row[Column.ROW_WIDTH] = numel
    row[Column.FORMAT] = int(state_format)
    offset = 0
    for index, field in enumerate(FIELDS[state_format]):
        row[Column.FIELD_0 + index] = offset
        offset += field.dtype.itemsize * (numel if field.per is Per.VALUE else numel // _BLOCK)
    return torch.tensor([row]), torch.zeros(offset, dtype=torch.uint8)


def operands_of(dtype: torch.dtype, numel: int) -> Operands:
    scalars = torch.zeros(1, len(Scalar))
    values = {
        Scalar.BETA1: 0.9,
        Scalar.ONE_MINUS_BETA1: 0.1,
        Scalar.BETA2: 0.999,
        Scalar.ONE_MINUS_BETA2: 0.001,
        Scalar.EPS: 1e-8,
        Scalar.DECAY: 1.0,
        Scalar.STEP_SIZE: 1e-6,
        Scalar.DENOM_SCALE: 1.0,
        Scalar.GRAD_SCALE: 1.0,
        Scalar.UPDATE_LIMIT: 4.0,
    }
    for scalar, value in values.items():
        scalars[0, scalar] = value
    params, grads = torch.randn(2, numel).to(dtype)
    return Operands([params], [grads], [0], scalars, new_absmax(1, torch.device("cpu")))


def main() -> None:
    """Print ns per value of every target that this processor has."""
    torch.set_num_threads(1)
    console = Console()
    console.print("ns per value, one thread      in cache  in memory")
    for target in (name for name, is_supported in TARGETS.items() if is_supported):
        for name, state_format in FORMATS.items():
            for dtype in DTYPES:
                kernel = NativeKernel(target)
                cached, far = (nanoseconds(kernel, state_format, dtype, numel) for numel in (IN_CACHE, IN_MEMORY))
                title = f"{target} {name} {str(dtype).removeprefix('torch.')}"
                console.print(f"{title:28s}{cached:10.3f}{far:11.3f}")


if __name__ == "__main__":
    main()
