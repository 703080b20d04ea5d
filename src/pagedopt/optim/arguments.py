"""What the six classes are given, checked: every wrong value is an error that names the argument and the value.

Trainers pass values as text (`--optim_args betas=(0.9,0.95)`), so text that reads as a literal of the right type is
taken.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from torch import Tensor

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
"""What a parameter group always has; read from it at every step."""


def literal(value: object) -> object:
    """Return what text says as a Python literal, and anything else unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return value


def number(value: object, name: str, *, below: float = math.inf) -> float:
    """Return `value` as a float, 0 <= value < `below`.

    Raises:
        TypeError: it is no number. ValueError: it is out of range.
    """
    plain = literal(value)
    if isinstance(plain, Tensor):
        if plain.numel() != 1:
            raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(plain.shape)}")
        plain = plain.item()
    if isinstance(plain, bool) or not isinstance(plain, Real):  # NumPy's numbers are, too: schedules compute them
        raise TypeError(f"{name} must be a number, got {value!r}")
    as_float = float(plain)
    if not 0 <= as_float < below:  # also refuses nan
        bound = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be at least 0 and {bound}, got {value!r}")
    return as_float


def whole(value: object, name: str, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]."""
    plain = literal(value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if plain < low or (high is not None and plain > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {span}, got {value!r}")
    return plain


def flag(value: object, name: str) -> bool:
    """Return `value` as a bool."""
    plain = literal(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return plain


def betas_of(value: object, name: str = "betas") -> tuple[float | Tensor, float | Tensor]:
    """Return the two decay rates given as any sequence of two or as text; 0-dimensional tensors are kept."""
    pair = literal(value)
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"{name} must be two numbers such as (0.9, 0.999), got {value!r}")
    return _kept(pair[0], f"{name}[0]", below=1.0), _kept(pair[1], f"{name}[1]", below=1.0)


def _kept(value: object, name: str, *, below: float = math.inf) -> float | Tensor:
    """Check a number but keep a tensor, which its owner may change in place between steps."""
    checked = number(value, name, below=below)
    return value if isinstance(value, Tensor) else checked


def check_hyperparameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that are hyperparameters, checked and read from text where they came as text."""
    checks: dict[str, Any] = {
        "lr": lambda value: _kept(value, "lr"),
        "betas": betas_of,
        "eps": lambda value: number(value, "eps"),
        "weight_decay": lambda value: number(value, "weight_decay"),
        "amsgrad": lambda value: flag(value, "amsgrad"),
        "maximize": lambda value: flag(value, "maximize"),
    }
    return {name: checks[name](values[name]) for name in HYPERPARAMETERS if name in values}


MIN_8BIT_SIZE = 4096
"""Parameters with fewer values keep 32-bit state in 8-bit classes, here and in bitsandbytes, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class StateOptions:
    """How the state of a parameter is kept: the class's choice, which a group or an override may change."""

    optim_bits: int = 32
    min_8bit_size: int = MIN_8BIT_SIZE
    percentile_clipping: int = 100
    block_wise: bool = True

    @staticmethod
    def parse(values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of `values` that are state options, checked."""
        checked: dict[str, Any] = {}
        if "optim_bits" in values:
            checked["optim_bits"] = whole(values["optim_bits"], "optim_bits", 0)
            if checked["optim_bits"] not in (8, 32):
                raise ValueError(f"optim_bits must be 8 or 32, got {values['optim_bits']!r}")
        if "min_8bit_size" in values:
            checked["min_8bit_size"] = whole(values["min_8bit_size"], "min_8bit_size", 0)
        if "percentile_clipping" in values:
            checked["percentile_clipping"] = whole(values["percentile_clipping"], "percentile_clipping", 1, 100)
        if "block_wise" in values:
            checked["block_wise"] = flag(values["block_wise"], "block_wise")
        return checked

    def overlaid(self, values: Mapping[str, Any]) -> StateOptions:
        """Return these options with those of `values` put in their place."""
        changed = {f.name: values[f.name] for f in fields(self) if f.name in values}
        return replace(self, **changed) if changed else self


def overridden(arguments: dict[str, Any], args: object) -> dict[str, Any]:
    """Return `arguments` with each replaced by the attribute of that name of `args`, where it has one.

    Raises:
        TypeError: `args` is neither None nor an object with at least one such attribute: it would be ignored.
    """
    if args is None:
        return arguments
    found = {name: getattr(args, name) for name in arguments if hasattr(args, name)}
    if not found:
        known = ", ".join(arguments)
        raise TypeError(f"args must be an object with some of the attributes {known}, got {args!r}")
    return {**arguments, **found}


def refuse_unhonoured(**flags: object) -> None:
    """Refuse torch's implementation switches that are on: each would have to be ignored."""
    for name, value in flags.items():
        if value is not None and flag(value, name):
            raise ValueError(
                f"{name}={value!r} cannot be honoured: the page kernel takes its place; leave {name} out or False"
            )
