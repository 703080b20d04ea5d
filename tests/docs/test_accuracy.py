"""The tables of docs/eight-bit.md are what the codecs and the optimizer do."""

from __future__ import annotations

import pytest

from tools import accuracy

TEXT = accuracy.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", accuracy.TABLES)
def test_a_table_of_the_page_is_what_is_measured(name: str) -> None:
    (shown,) = [match[0] for match in accuracy.TABLE.finditer(TEXT) if match["name"] == name]
    assert accuracy.page(shown) == shown, "python tools/accuracy.py writes the tables anew"


def test_the_page_says_what_the_tables_say() -> None:
    """The words around the tables: the root beats v, the limit holds, and bfloat16 loses more than eight bits."""
    assert f"{accuracy.ROWS * accuracy.BLOCK:,} normally distributed" in TEXT
    rows = [line.split(" | ") for line in accuracy.roots().splitlines()[2:]]
    assert all(float(as_root.rstrip("% |")) < float(as_v.rstrip("%")) for *_, as_v, as_root in rows)
    eight_bit, bfloat16, _ = (line.split(" | ")[1] for line in accuracy.training().splitlines()[2:])
    assert float(eight_bit.rstrip("%")) < float(bfloat16.rstrip("%"))
