"""What a machine can do, as numbers: measured in seconds, kept in the user's cache folder, or given in a file.

    {"pagedopt_rates": 1,
     "machine": {"processor": ..., "torch": ..., "backend": ..., "page": ...},       what they are rates of
     "bytes_per_second": {"host": ..., "disk_read": ..., "disk_write": ..., "disk_both": ..., "up": ..., "down": ...},
     "values_per_second": {"blockwise8/bfloat16": ...},                             format / parameters' dtype
     "seconds": {"page": ..., "parameter": ...},                                    of bookkeeping, for each in a step
     "overlap": 0.5}                                                                of a CPU's update and the disk

`host` is a copy in RAM, counted once. `disk_both` counts both ways of pages read and written at once, as a paged step
does. `up` and `down` are copies to and from an accelerator; a machine that has none has no such rates. `overlap` says
how much of the shorter of update and disk the longer one hides: on a CPU both want the same processors and memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagedopt.errors import PagedOptError

RATES_VERSION = 1

_BYTES = ("host", "disk_read", "disk_write", "disk_both", "up", "down")
_SECONDS = ("page", "parameter")


class RatesError(PagedOptError, ValueError):
    """Rates are missing, damaged, or not of this machine; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one machine.

    Attributes:
        bytes_per_second: by name: `host`, a copy in RAM; `disk_read`, `disk_write`, and `disk_both`, which counts both
            ways at once; `up` and `down`, copies to and from an accelerator.
        values_per_second: by format of the state and dtype of the parameters, such as `"blockwise8/bfloat16"`.
        seconds: of bookkeeping in a step, for each `page` and each `parameter`.
        machine: what they were measured on; nothing of it is used but to show it and to tell machines apart.
        overlap: of the shorter of update and disk, the share that the longer one hides, from 0 to 1; None: not known.
    """

    bytes_per_second: Mapping[str, float]
    values_per_second: Mapping[str, float]
    seconds: Mapping[str, float]
    machine: Mapping[str, str] = field(default_factory=dict)
    overlap: float | None = None

    def of_bytes(self, name: str) -> float:
        """Return bytes per second.

        Raises:
            RatesError: there is no such rate.
        """
        return _named(self.bytes_per_second, name, "bytes_per_second")

    def of_values(self, state_format: str, dtype: str) -> float:
        """Return values updated per second.

        Raises:
            RatesError: there is no such rate.
        """
        return _named(self.values_per_second, f"{state_format}/{dtype}", "values_per_second")

    def of_seconds(self, name: str) -> float:
        """Return the seconds of bookkeeping for one page or one parameter; 0 where nothing is said of it."""
        return self.seconds.get(name, 0.0)

    def __or__(self, other: Rates) -> Rates:
        """Return these rates with those of `other` in their place."""
        return Rates(
            {**self.bytes_per_second, **other.bytes_per_second},
            {**self.values_per_second, **other.values_per_second},
            {**self.seconds, **other.seconds},
            other.machine or self.machine,
            self.overlap if other.overlap is None else other.overlap,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a rates file has."""
        return {
            "pagedopt_rates": RATES_VERSION,
            "machine": dict(self.machine),
            "bytes_per_second": dict(self.bytes_per_second),
            "values_per_second": dict(self.values_per_second),
            "seconds": dict(self.seconds),
            **({} if self.overlap is None else {"overlap": self.overlap}),
        }


def _named(rates: Mapping[str, float], name: str, kind: str) -> float:
    if name not in rates:
        raise RatesError(
            f"the rates have no {name!r} in {kind!r}; add it, or leave --rates out to measure this machine"
        )
    return rates[name]


def read_rates(path: str | os.PathLike[str]) -> Rates:
    """Return the rates in a file.

    Raises:
        RatesError: it cannot be read, or is no rates file; the message names what is wrong in it.
    """
    name = os.fspath(path)
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise RatesError(f"cannot read the rates in {name!r}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise RatesError(f"{name!r} is no rates file: {error}") from None
    if not isinstance(content, dict) or content.get("pagedopt_rates") != RATES_VERSION:
        raise RatesError(f"{name!r} is no rates file of version {RATES_VERSION}")
    machine = content.get("machine")
    return Rates(
        _checked(content, "bytes_per_second", name, _BYTES),
        _checked(content, "values_per_second", name, None),
        _checked(content, "seconds", name, _SECONDS),
        {str(key): str(value) for key, value in machine.items()} if isinstance(machine, dict) else {},
        _checked_overlap(content.get("overlap"), name),
    )


def _checked_overlap(overlap: object, name: str) -> float | None:
    if overlap is None:
        return None
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 <= overlap <= 1:
        raise RatesError(f"{name!r} must have a number from 0 to 1 as 'overlap', it has {overlap!r}")
    return float(overlap)


def _checked(content: Mapping[str, Any], kind: str, name: str, known: tuple[str, ...] | None) -> dict[str, float]:
    rates = content.get(kind, {})
    if not isinstance(rates, dict):
        raise RatesError(f"{name!r} is no rates file: {kind!r} must be an object")
    for key, rate in rates.items():
        if known is not None and key not in known:
            raise RatesError(f"{name!r} has an unknown rate {key!r} in {kind!r}; known are {', '.join(known)}")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise RatesError(f"{name!r} must have a positive number as {key!r} in {kind!r}, it has {rate!r}")
    return {key: float(rate) for key, rate in rates.items()}


# -- the cache --------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder where this user's programs keep what they can make again, with a folder of ours in it."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "pagedopt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "pagedopt"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "pagedopt"


def cache_file(machine: Mapping[str, str]) -> Path:
    """Return where the rates of such a machine are kept."""
    digest = hashlib.sha256(json.dumps(dict(machine), sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"rates-{digest}.json"


def cached_rates(machine: Mapping[str, str]) -> Rates | None:
    """Return the rates measured before on such a machine, None if there are none."""
    path = cache_file(machine)
    if not path.is_file():
        return None
    try:
        rates = read_rates(path)
    except RatesError:  # what a killed process or an older version left there is measured again
        return None
    return rates if rates.machine == dict(machine) else None


def keep_rates(rates: Rates) -> None:
    """Keep rates for the next time; where that is not possible they are measured again, and a warning says so."""
    path = cache_file(rates.machine)
    staged = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(rates.to_dict(), indent=2))
        staged.replace(path)
    except OSError as error:
        warnings.warn(f"this machine's rates cannot be kept in {path.parent}: {error.strerror or error}", stacklevel=2)
