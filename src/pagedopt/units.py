"""Bytes and counts for people.

`parse_bytes("4MiB") == 4194304`, `format_bytes(4194304) == "4 MiB"`;
`parse_count("0.5B") == 500000000`, `format_count(500000000) == "0.5B"`.
"""

from __future__ import annotations

import re

MAX = 1 << 63
"""What no machine has, and no tensor counts to."""

_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_QUANTITY = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?(?:e\d+)?)\s*(?P<prefix>[kmgt]?)(?P<unit>i?b?)\s*", re.IGNORECASE)

_COUNT_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_COUNT = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?(?:e\d+)?)\s*(?P<scale>[kmbt]?)\s*", re.IGNORECASE)
_GROUPED = re.compile(r"\s*\d{1,3}(?:(?:,\d{3})+|(?:_\d{3})+)\s*")


def parse_bytes(quantity: int | str, *, name: str = "size") -> int:
    """Return a number of bytes given as an int or as text with a unit.

    `KiB, MiB, GiB, TiB` (or `Ki`, `Mi`, ...) count in powers of 1024; `kB, MB, GB, TB` (or `k`, `M`, ...) of 1000.

    Raises:
        TypeError: `quantity` is neither an int nor a str.
        ValueError: it is negative, or text that is not a quantity of bytes; the message names `name` and the value.
    """
    if isinstance(quantity, bool) or not isinstance(quantity, (int, str)):
        raise TypeError(f'{name} must be an int or text such as "4MiB", not {quantity!r}')
    if isinstance(quantity, int):
        if quantity < 0:
            raise ValueError(f"{name} must not be negative, got {quantity}")
        return quantity
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f'{name} must be bytes such as 4194304 or "4MiB", got {quantity!r}')
    scale = _BINARY if match["unit"].lower().startswith("i") else _DECIMAL
    return _rounded(float(match["number"]) * scale[match["prefix"].lower()], quantity, name)


def _rounded(number: float, text: str, name: str) -> int:
    if number >= MAX:
        raise ValueError(f"{name} must be less than 2^63, got {text!r}")
    return round(number)


def format_bytes(nbytes: float) -> str:
    """Return `nbytes` in the largest binary unit that keeps it at least 1, to three digits: `"1.5 MiB"`."""
    size, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{_three_digits(size)} {unit}"


def parse_count(text: str, *, name: str = "count") -> int:
    """Return a number of things given as text: `"8000000"`, `"8,000,000"`, `"8e6"`, `"8M"` or `"7B"` (billions).

    Raises:
        ValueError: it is not a count, or less than 1; the message names `name` and the value.
    """
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace("_", "")
    match = _COUNT.fullmatch(text)
    count = _rounded(float(match["number"]) * _COUNT_SCALE[match["scale"].lower()], text, name) if match else 0
    if count < 1:
        raise ValueError(f'{name} must look like 8000000, "8M" or "7B", got {text!r}')
    return count


def format_count(count: int) -> str:
    """Return `count` with the largest of K, M, B, T that keeps it at least 0.5, to three digits: `"0.5B"`."""
    for letter in ("t", "b", "m", "k"):
        if count >= _COUNT_SCALE[letter] / 2:
            return f"{_three_digits(count / _COUNT_SCALE[letter])}{letter.upper()}"
    return str(count)


def _three_digits(number: float) -> str:
    """Return `number` to three digits, but whole if it has more: never with an exponent."""
    return f"{number:.0f}" if abs(number) >= 999.5 else f"{number:.3g}"
