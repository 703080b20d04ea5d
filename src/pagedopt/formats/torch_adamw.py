"""torch.optim.AdamW's and Adam's entries, and our own 32-bit ones, which have the same keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pagedopt.codecs.base import FIELDS, StateFormat
from pagedopt.formats.entry import Entry, Moments, as_float32, step_of, values_of
from pagedopt.formats.ours import gnorms_of


def is_torch_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether the moments are kept as values under torch's names."""
    return "exp_avg" in entry and "exp_avg_sq" in entry


def read_torch(entry: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a checked entry of float32, bfloat16 or float16 moments of the parameter's shape."""
    names = [field.name for field in FIELDS[StateFormat.FLOAT32_AMSGRAD] if field.name in entry]
    arrays = {name: values_of(entry, name, shape) for name in names}

    def moments() -> Moments:
        return Moments(**{name: as_float32(array) for name, array in arrays.items()})

    exact = None
    if all(array.dtype == torch.float32 for array in arrays.values()):
        kept = StateFormat.FLOAT32_AMSGRAD if "max_exp_avg_sq" in arrays else StateFormat.FLOAT32
        exact = (kept, {index: arrays[field.name] for index, field in enumerate(FIELDS[kept])})
    return Entry(
        source="32-bit", step=step_of(entry), is_8bit=False, moments=moments, exact=exact, gnorms=gnorms_of(entry)
    )
