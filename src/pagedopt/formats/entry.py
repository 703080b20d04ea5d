"""One parameter's entry of a state dict, of whatever optimizer, on its way into pages.

recognise(entry)        which library's it is, checked against the parameter; nothing is converted yet
Entry.arrays(...)       the arrays of our format, converted if they have to be
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedopt.codecs.base import FIELDS, StateFormat
from pagedopt.codecs.blockwise import Blocks, decode, encode, encode_moment, floored, keepable
from pagedopt.codecs.codebook import sorted_values
from pagedopt.errors import CheckpointError
from pagedopt.layout import Grid, grid_of

_MOST_NEGATIVE = -sorted_values(signed=True)[0].item()
"""The size of the most negative value of the codebook of `exp_avg`; its largest is 1."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of one parameter as values: flat float32 tensors in row-major order.

    Attributes:
        exp_avg, exp_avg_sq: the first moment and the second (itself, not its root).
        max_exp_avg_sq: amsgrad's, or None.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked entry.

    Attributes:
        source: whose it is and how it is kept, for people: `torch 32-bit`.
        step: updates made so far.
        is_8bit: whether its moments are codes.
        moments: reads them as values; may cost the parameter's size.
        exact: its arrays as they are, where they are ours and of this format; else None.
        gnorms: percentile clipping's squared norms, or None.
    """

    source: str
    step: float
    is_8bit: bool
    moments: Callable[[], Moments]
    exact: tuple[StateFormat, dict[int, Tensor]] | None = None
    gnorms: Tensor | None = None

    def arrays(self, state_format: StateFormat, grid: Grid) -> dict[int, Tensor]:
        """Return the arrays of `state_format` by index in `FIELDS`, exact where the entry already is of that format."""
        if self.exact is not None and self.exact[0] is state_format:
            return self.exact[1]
        return to_arrays(self.moments(), state_format, grid)


def to_arrays(moments: Moments, state_format: StateFormat, grid: Grid) -> dict[int, Tensor]:
    """Return moments as the arrays of a format."""
    if state_format.is_8bit:
        m, root = keepable(moments.exp_avg, moments.exp_avg_sq.double().sqrt().float())
        arrays = {}
        for index, values in enumerate((m, root)):
            arrays[index], arrays[index + 2] = _encode(values, state_format, grid, signed=index == 0)
        return arrays
    arrays = {0: moments.exp_avg, 1: moments.exp_avg_sq}
    if state_format is StateFormat.FLOAT32_AMSGRAD:
        # a maximum starts at what is there when amsgrad is switched on
        arrays[2] = moments.exp_avg_sq if moments.max_exp_avg_sq is None else moments.max_exp_avg_sq
    return arrays


def moments_of(values: Mapping[int, Tensor]) -> Moments:
    """Return the arrays of 32-bit state as moments."""
    flat = {index: array.reshape(-1) for index, array in values.items()}
    return Moments(flat[0], flat[1], flat.get(2))


def decoded_span(arrays: Sequence[Tensor], state_format: StateFormat, grid: Grid, start: int) -> Moments:
    """Return 8-bit state as moments, on its device.

    `arrays` are codes and absmax of whole blocks, flat, in the order of `FIELDS`; the first value has index `start` in
    its parameter.
    """
    m, root = (
        decode(codes, _spread(absmax, state_format, grid, start, codes.numel()), signed=signed)
        for codes, absmax, signed in ((arrays[0], arrays[2], True), (arrays[1], arrays[3], False))
    )
    return Moments(m, root * root)


def _spread(absmax: Tensor, state_format: StateFormat, grid: Grid, start: int, numel: int) -> Tensor:
    """Return for each value the absmax that it is scaled by."""
    return Blocks(start, numel, grid.row_width).spread(absmax) if state_format is StateFormat.BLOCKWISE8 else absmax


def from_arrays(arrays: Mapping[int, Tensor], state_format: StateFormat, grid: Grid) -> Moments:
    """Return the arrays of a format as moments."""
    if not state_format.is_8bit:
        return moments_of(arrays)
    flat = [arrays[index].reshape(-1) for index in range(len(FIELDS[state_format]))]
    return decoded_span(flat, state_format, grid, 0)


def _encode(values: Tensor, state_format: StateFormat, grid: Grid, *, signed: bool) -> tuple[Tensor, Tensor]:
    if state_format is StateFormat.BLOCKWISE8:
        codes, absmax = encode_moment(values, row_width=grid.row_width, signed=signed)
        return _as_decoded(values, codes, absmax, grid) if signed else (codes, absmax)
    absmax = floored(values.abs().amax() if values.numel() else values.new_zeros(()))
    return encode(values, absmax, signed=signed), absmax


def _as_decoded(values: Tensor, codes: Tensor, absmax: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return codes and absmax of signed values; where the values were once decoded, those that they were decoded from.

    There is no code for -1, so a block whose largest |value| was negative is decoded to a smaller one, and encoding
    that with its own absmax would move every code. Such a block is told by all its values being exact with the larger
    absmax that it must have had. With this, state that goes through 32 bits and back is the same to the bit.
    """
    blocks = Blocks(0, values.numel(), grid.row_width)

    def is_exact(trial: Tensor, scale: Tensor) -> Tensor:
        differs = decode(trial, blocks.spread(scale), signed=True) != values
        return blocks.absmax(differs.float()) == 0

    kept, kept_codes = absmax.reshape(-1), codes
    guess = kept / _MOST_NEGATIVE
    for scale in (guess, guess.nextafter(torch.zeros(())), guess.nextafter(torch.tensor(torch.inf))):
        inexact = ~is_exact(kept_codes, kept)
        if not inexact.any():
            break
        trial = encode(values, blocks.spread(scale), signed=True)
        found = inexact & is_exact(trial, scale)
        kept = torch.where(found, scale, kept)
        kept_codes = torch.where(blocks.spread(found), trial, kept_codes)
    return kept_codes, kept.view(absmax.shape)


def step_of(entry: Mapping[str, Any]) -> float:
    """Return the step of an entry, a number or a tensor of one."""
    step = entry.get("step")
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step < 2**53:
        raise CheckpointError(f"step must be a number of updates, got {step!r}")
    return float(step)


def tensor_of(entry: Mapping[str, Any], key: str, numel: int, *dtypes: torch.dtype) -> Tensor:
    """Return `entry[key]`, checked to be a dense tensor of `numel` elements of one of `dtypes` (default: any float)."""
    tensor = entry.get(key)
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        raise CheckpointError(f"{key} must be a dense tensor, got {type(tensor).__name__}")
    if tensor.numel() != numel:
        raise CheckpointError(f"{key} has {tensor.numel()} elements {tuple(tensor.shape)}, expected {numel}")
    if tensor.dtype not in dtypes if dtypes else not tensor.is_floating_point():
        raise CheckpointError(f"{key} is {tensor.dtype}, expected {' or '.join(map(str, dtypes)) or 'a float type'}")
    return tensor.detach()


def values_of(entry: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Tensor:
    """Return `entry[key]`, checked to have the parameter's shape."""
    tensor = tensor_of(entry, key, math.prod(shape))
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{key} has shape {tuple(tensor.shape)}, the parameter {shape}")
    return tensor


def as_float32(tensor: Tensor) -> Tensor:
    """Return values as a flat float32 CPU tensor in row-major order."""
    return tensor.to("cpu", torch.float32).reshape(-1)


def grid_for(shape: tuple[int, ...], state_format: StateFormat) -> Grid:
    """Return the grid of a whole parameter of this shape."""
    return grid_of(shape, math.prod(shape), state_format)
