"""A bar on the terminal for what takes long; nothing where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONG_NBYTES = 1 << 30
"""Less than this is done before anyone looks."""


@contextmanager
def progress(what: str, nbytes: int, *, is_shown: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many more bytes are done.

    Args:
        what: what is being done: `saving to /tmp/x`.
        nbytes: bytes in all.
        is_shown: whether a bar is drawn on stderr, where that is no terminal once at the end; None: if there is much to
            do and somebody may look.
    """
    if is_shown is None:
        is_shown = nbytes >= LONG_NBYTES and sys.stderr.isatty()
    if not is_shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(what, total=nbytes)
        yield lambda done: bar.advance(task, done)
