"""The blocks of docs/gpu.md run, in their order, with or without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pagedopt import MemoryStats

PAGE = (Path(__file__).parent.parent / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_program_of_the_page_runs() -> None:
    made: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, made)
    assert isinstance(made["optimizer"].memory_stats(), MemoryStats)
    assert int(made["optimizer"].state[made["model"].weight]["step"]) == 2
