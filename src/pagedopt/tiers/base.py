"""What a tier is: a place for pages that are not in frames. It never asks what their bytes mean."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from pagedopt.errors import SpillError

Home = Literal["host", "disk"]
HOMES: tuple[Home, ...] = ("host", "disk")


@dataclass(frozen=True, slots=True)
class TierUsage:
    """Bytes that the pages of a tier hold: reserved, whether or not they were written yet."""

    host_nbytes: int = 0
    disk_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """When something happened, and where.

    Attributes:
        track: what did it, by name: an I/O thread, a stream.
        start, stop: seconds on the clock of `time.perf_counter`.
    """

    track: str
    start: float
    stop: float


class Transfer(Protocol):
    """A read or write under way.

    On the host it is an I/O thread's future; on a GPU it is an event of a copy stream.
    """

    def done(self) -> bool:
        """Return whether it ended, well or badly, without waiting."""
        ...

    def wait(self) -> None:
        """Return when what comes next here (on the host, or on the device's current stream) sees its effect.

        Raises:
            SpillError: the transfer failed; raised again at every call.
        """
        ...

    def span(self) -> Span | None:
        """Return when the bytes moved, once the transfer is done; None if nobody took the time."""
        ...


class EndedTransfer:
    """A transfer that ended before anybody could wait for it: a synchronous copy, or one that could not start."""

    __slots__ = ("_error",)

    def __init__(self, error: SpillError | None = None) -> None:
        self._error = error

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        if self._error is not None:
            raise copy(self._error)  # a copy each time: a kept exception would keep its traceback's frames alive

    def span(self) -> None:
        return None


class Tier(Protocol):
    """A home of pages, by page number.

    Laws: a page reads back as last written, or the read fails; transfers on one page happen in the order they were
    started; a transfer starts only after those in `after` ended well, and fails if one of them failed. What goes wrong
    with a transfer, be it at its start, is raised by its `wait` and by nothing else.
    """

    @property
    def usage(self) -> TierUsage:
        """Bytes held now."""
        ...

    def describe(self) -> str:
        """Return in words where pages are, how they get there, and what is missing that would make it better."""
        ...

    def home(self, page: int) -> Home:
        """Return where a reserved `page` lives; fixed until it is released."""
        ...

    def reserve(self, page: int, nbytes: int) -> None:
        """Make room for `nbytes` of `page`, so that a later write cannot run out of room.

        Raises:
            SpillError: there is no room.
        """
        ...

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        """Start filling `into` (uint8, contiguous, as long as what was written) with `page`."""
        ...

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        """Start storing `source` (uint8, contiguous); it must not change until the transfer is done."""
        ...

    def release(self, page: int) -> None:
        """Forget `page` and give its room back. No transfer of it may be under way."""
        ...

    def finish(self) -> None:
        """Return when no transfer is under way any more, also of those that were started by a call cut short.

        What such a call had of the tier's is the tier's again.
        """
        ...

    def close(self) -> None:
        """Wait for every transfer, then give back all memory, files and threads. May be called again."""
        ...
