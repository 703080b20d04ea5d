from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.page_session import ROOT, given, session


@pytest.fixture
def run_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run a page in a folder of its own, and return what its programs made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # pytest's handlers stay as they are

    def run(page: str) -> dict[str, Any]:
        names = given()
        text = (ROOT / page).read_text(encoding="utf-8")
        assert session(text, page, names) == text, "python tools/page_session.py writes the outputs anew"
        return names

    yield run
    logging.getLogger("pagedopt").setLevel(logging.NOTSET)
