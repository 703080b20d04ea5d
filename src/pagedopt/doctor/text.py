"""Findings for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from pagedopt.doctor.check import Check

_STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red"}


def as_json(checks: Sequence[Check]) -> str:
    """Return the findings as JSON."""
    states = [check.state for check in checks]
    return json.dumps({"is_broken": "broken" in states, "checks": [asdict(check) for check in checks]}, indent=2)


def as_table(checks: Sequence[Check]) -> Table:
    """Return the findings as a table for a terminal: state, name, and what was found with what it costs below."""
    table = Table.grid(padding=(0, 2))
    for _ in ("state", "name", "what was found"):
        table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.state, _STYLES[check.state]), check.name, Text(_told(check)))
    return table


def _told(check: Check) -> str:
    lines = [check.value]
    if check.cost:
        lines.append(f"cost: {check.cost}")
    if check.remedy:
        lines.append(f"to do: {check.remedy}")
    return "\n".join(lines)
