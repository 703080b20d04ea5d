"""Bytes and counts: what is written is read again, and what is none is refused with its name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedopt.units import format_bytes, format_count, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4096", 4096), ("4KiB", 4096), ("4 kB", 4000), ("1.5Gi", 3 << 29), ("2e9", 2 * 10**9), ("1TB", 10**12)],
)
def test_bytes_are_read_with_their_unit(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8000000", 8_000_000),
        ("8M", 8_000_000),
        ("0.5b", 5 * 10**8),
        ("7e9", 7 * 10**9),
        ("7,000,000", 7 * 10**6),
        ("7_000", 7000),
    ],
)
def test_counts_are_read_with_their_letter(text: str, count: int) -> None:
    assert parse_count(text) == count


@given(st.integers(0, 1 << 60))
def test_what_is_written_is_read_again_to_three_digits(number: int) -> None:
    assert parse_bytes(format_bytes(number)) == pytest.approx(number, rel=0.006)
    if number:
        assert parse_count(format_count(number)) == pytest.approx(number, rel=0.006)


@pytest.mark.parametrize("text", ["7,5B", "7,50", "1,000B", "7,000_000", "7__000", "1,,000"])
def test_a_comma_that_is_no_thousands_separator_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="params must"):
        parse_count(text, name="params")


@pytest.mark.parametrize("text", ["", "-1", "4 pounds", "nan", "1e400", "1e19", "0x10"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="budget must be"):
        parse_bytes(text, name="budget")
    with pytest.raises(ValueError, match="params must"):
        parse_count(text, name="params")
