"""What is kept for a parameter: the formats of its state and the arrays each is made of.

A format fixes, for one parameter, which arrays hold its moments and how many elements each has per value or per block.
It says nothing about where those arrays lie (`layout`) or how they are computed (`kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

import torch

BLOCK = 256
"""Values that share one absmax: a block is at most this many consecutive values of one row."""

NARROW_ROW = 64
"""Rows with fewer values than this share flat blocks: one absmax a row would cost more than it tells."""

CODEC_VERSION = "dynamic8/1"
"""Name and version of the 8-bit codecs, written into every state dict (see `codecs.codebook`)."""


class StateFormat(IntEnum):
    """How the state of one parameter is kept. The numbers are part of the kernels' calling convention."""

    FLOAT32 = 0
    FLOAT32_AMSGRAD = 1
    BLOCKWISE8 = 2
    TENSORWISE8 = 3

    @property
    def is_8bit(self) -> bool:
        return self in (StateFormat.BLOCKWISE8, StateFormat.TENSORWISE8)


class Per(Enum):
    """What an array has one element for."""

    VALUE = "value"
    BLOCK = "block"
    SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a format: its name in `optimizer.state[p]`, its element type and what it has one element for."""

    name: str
    dtype: torch.dtype
    per: Per


_EXP_AVG = Field("exp_avg", torch.float32, Per.VALUE)
_EXP_AVG_SQ = Field("exp_avg_sq", torch.float32, Per.VALUE)
_CODES = (Field("exp_avg", torch.int8, Per.VALUE), Field("exp_avg_sq", torch.uint8, Per.VALUE))

FIELDS: dict[StateFormat, tuple[Field, ...]] = {
    StateFormat.FLOAT32: (_EXP_AVG, _EXP_AVG_SQ),
    StateFormat.FLOAT32_AMSGRAD: (_EXP_AVG, _EXP_AVG_SQ, Field("max_exp_avg_sq", torch.float32, Per.VALUE)),
    StateFormat.BLOCKWISE8: (
        *_CODES,
        Field("exp_avg_absmax", torch.float32, Per.BLOCK),
        Field("exp_avg_sq_absmax", torch.float32, Per.BLOCK),
    ),
    # The tensor's one absmax is repeated in each of its segments, so that a page holds all it needs.
    StateFormat.TENSORWISE8: (
        *_CODES,
        Field("exp_avg_absmax", torch.float32, Per.SEGMENT),
        Field("exp_avg_sq_absmax", torch.float32, Per.SEGMENT),
    ),
}
