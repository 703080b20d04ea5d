"""The backend for GPUs: a page in one launch, whatever it holds, for NVIDIA, AMD and Intel from one source.

A page whose parameters or gradients have several pairs of element types takes one launch for each pair, and one with
tensor-wise segments one more. Everything runs on the current stream, and nothing waits for the device. A kernel is
compiled once for the formats of a page and a pair of element types, and for nothing else.

Bits are those of `kernels.reference`. Named exception: before Triton 3.6, division and root take floats below 2^-126
for zero on NVIDIA GPUs.

Under TRITON_INTERPRET=1 the same kernels run on the CPU, a tile at a time in numpy, to be tested.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pagedopt.kernels import norm
from pagedopt.kernels.args import Operands
from pagedopt.kernels.triton_codec import codec_table
from pagedopt.kernels.triton_norm import fold_sums, sum_chunk
from pagedopt.kernels.triton_page import measure_page, store_absmax, update_page
from pagedopt.kernels.triton_tables import (
    TILE_BLOCKS,
    PageTables,
    StepTables,
    dtypes_of,
    page_tables,
    step_tables,
)

IS_INTERPRETED = not isinstance(update_page, triton.JITFunction)
"""Whether Triton was imported under TRITON_INTERPRET=1."""

_ELEMENT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_THREADS = 256
"""Of a program: a row of 256 values lies in one warp of 32, so its largest is found without shared memory."""


class TritonKernel:
    """See `kernels.args.Kernel`. An `Operands` belongs to the stream that is current when it is first used."""

    name = "triton"

    def __init__(self) -> None:
        # A page's tables live as long as what they were made of, which is told apart by identity and not by its values.
        self._pages: MutableMapping[Tensor, PageTables] = WeakIdKeyDictionary()

    def update(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        device = frame.device
        step = _step(operands, device)
        page = self._page(segments, device, step)
        codec = codec_table(device)
        with _current(device):
            for pair in step.live_pairs_of(page):
                param, grad = dtypes_of(pair)
                update_page[(page.num_tiles,)](
                    page.tiles,
                    page.segments,
                    step.operands,
                    step.scalars,
                    codec,
                    operands.absmax,
                    frame,
                    FORMATS=page.formats,
                    PARAM=_ELEMENT[param],
                    GRAD=_ELEMENT[grad],
                    PAIR=pair,
                    BLOCKS=TILE_BLOCKS,
                    BY_HAND=IS_INTERPRETED,
                    **_options(),
                )
            if page.is_tensorwise:
                store_absmax[(page.num_segments,)](page.segments, step.operands, operands.absmax, frame, **_options())

    def measure(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        device = frame.device
        step = _step(operands, device)
        page = self._page(segments, device, step)
        if not page.is_tensorwise:
            return
        with _current(device):
            for pair in step.live_pairs_of(page):
                param, grad = dtypes_of(pair)
                measure_page[(page.num_tiles,)](
                    page.tiles,
                    page.segments,
                    step.operands,
                    step.scalars,
                    codec_table(device),
                    operands.absmax,
                    frame,
                    PARAM=_ELEMENT[param],
                    GRAD=_ELEMENT[grad],
                    PAIR=pair,
                    BLOCKS=TILE_BLOCKS,
                    **_options(),
                )

    def squared_norm(self, grad: Tensor) -> Tensor:
        with _current(grad.device):
            sums = [_sum_of_squares(run) for run in norm.runs(grad) if run.numel()]
        return norm.fold(torch.stack(sums)).float() if sums else grad.new_zeros((), dtype=torch.float32)

    def _page(self, segments: Tensor, device: torch.device, step: StepTables) -> PageTables:
        page = self._pages.get(segments)
        if page is None or page.tiles.device != device:
            page = self._pages[segments] = page_tables(segments, device)
        if page.stream is not None and step.stream is not None and page.stream != step.stream:
            page.segments.record_stream(step.stream)
        return page


def _step(operands: Operands, device: torch.device) -> StepTables:
    step: StepTables | None = operands.derived.get("triton")
    if step is None:
        step = operands.derived["triton"] = step_tables(operands, device)
    return step


def options_for(warp_size: int) -> dict[str, Any]:
    """Return the launch options on a device: products and sums stay apart, each rounded, as in `kernels.reference`."""
    return {"num_warps": _THREADS // warp_size, "enable_fp_fusion": False}


@lru_cache
def _options() -> dict[str, Any]:
    return options_for(32 if IS_INTERPRETED else triton.runtime.driver.active.get_current_target().warp_size)


def _sum_of_squares(run: Tensor) -> Tensor:
    """Return the sum of squares of a flat contiguous tensor as a 0-d float64 tensor."""
    num_chunks = -(-run.numel() // norm.CHUNK)
    size = 1 << (num_chunks - 1).bit_length()
    sums = torch.zeros(size, dtype=torch.float64, device=run.device)
    sum_chunk[(num_chunks,)](run, sums, run.numel(), DTYPE=_ELEMENT[run.dtype], **_options())
    if size > 1:
        fold_sums[(1,)](sums, size, **_options())
    return sums[0]


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which Triton launches on `device`."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
