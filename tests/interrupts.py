"""Ctrl-C at a chosen moment: where CPython looks for signals, which it does whenever a function of Python begins."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

import pagedopt

_SOURCE = Path(pagedopt.__file__).parent


class Interrupt:
    """While this context is entered, `KeyboardInterrupt` is raised when the `nth` function of `packages` begins.

    Generators are passed over: they begin again whenever they go on, also to be closed, and no signal is seen then. So
    are finalizers, which swallow what they raise.

    Attributes:
        where: the function that was interrupted; None if there were not as many.
    """

    def __init__(self, nth: int, *packages: str) -> None:
        self._folders = tuple(str(_SOURCE / package) for package in packages)
        self._left = nth
        self.where: str | None = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> bool:
        sys.settrace(self._before)
        return kind is KeyboardInterrupt

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if event != "call" or self.where is not None or not code.co_filename.startswith(self._folders):
            return None
        if code.co_flags & inspect.CO_GENERATOR or _is_in_a_finalizer(frame):
            return None
        if self._left == 0:
            self.where = f"{Path(code.co_filename).name}:{code.co_name}"
            raise KeyboardInterrupt
        self._left -= 1
        return None


def _is_in_a_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is weakref.finalize.__call__.__code__:
            return True
        frame = frame.f_back
    return False
