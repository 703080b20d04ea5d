"""A file in the Trace Event Format, as Perfetto and Chrome read it, that grows while it is written.

    [
    {"ph": "X", "name": "update", ...},
    ...
    {"ph": "i", "name": "end of trace", ...}
    ]

The array form of the format: a file that was cut off, because the process was killed, lacks its last bracket, and the
viewers open it all the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TraceEvent = dict[str, Any]
"""One event, with the format's names: ph, name, pid, tid, ts and dur in microseconds, cat, args."""


class TraceFile:
    """Writes events past Python's buffers, so that a forked child has nothing of them left to write.

    Raises:
        OSError: the file cannot be opened or, by any method, written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._separator = b"[\n"

    def write(self, events: Iterable[TraceEvent]) -> None:
        """Append events."""
        lines = b",\n".join(json.dumps(event, separators=(",", ":")).encode() for event in events)
        if lines:
            self._write(self._separator + lines)
            self._separator = b",\n"

    def close(self) -> None:
        """End the array and close the file, whether or not the end can be written."""
        try:
            self._write(b"\n]\n" if self._separator == b",\n" else b"[]\n")
        finally:
            self._file.close()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]
