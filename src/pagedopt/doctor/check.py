"""What one examination found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: `missing`: all works without it, at a cost; `broken`: something does not work.
        value: what was found.
        cost: what its absence costs; empty where it is there.
        remedy: how to get it; empty where nothing is to be done.
    """

    name: str
    state: State
    value: str
    cost: str = ""
    remedy: str = ""
