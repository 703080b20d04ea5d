"""Run a script in a process of its own: for what a test must see from birth to exit (imports, memory, signals)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pagedopt

_SOURCE = str(Path(pagedopt.__file__).parent.parent)
_TESTS = str(Path(__file__).parent)

# Large blocks that a child frees go back to the system at once, so that its resident memory is the memory it uses.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}


def run_python(script: str, *args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `script` with `args` as `sys.argv[1:]`; the child sees the pagedopt and the test modules seen here."""
    path = os.pathsep.join([_SOURCE, _TESTS, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **_MALLOC},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def report_of(script: str, *args: object, timeout: float = 240) -> Any:
    """Run `script` and return what it prints as JSON on its last line; a child that fails shows what it said."""
    done = run_python(script, *args, timeout=timeout)
    assert done.returncode == 0, f"child ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.strip().splitlines()[-1])
