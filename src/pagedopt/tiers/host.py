"""Pages in RAM: the home of an accelerator's pages as far as `max_host_memory` reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.tiers.base import EndedTransfer, Home, TierUsage, Transfer
from pagedopt.tiers.buffers import new_host_buffer
from pagedopt.units import format_bytes


class HostTier:
    """A `Tier` that copies on the current stream, in the caller's thread.

    Args:
        charge: takes bytes of RAM from the budget; False if it has not that many.
        refund: gives them back.
    """

    def __init__(self, charge: Callable[[int], bool], refund: Callable[[int], None]) -> None:
        self._charge = charge
        self._refund = refund
        self._reserved: dict[int, int] = {}
        self._stored: dict[int, Tensor] = {}

    @property
    def usage(self) -> TierUsage:
        return TierUsage(host_nbytes=sum(self._reserved.values()))

    def describe(self) -> str:
        return f"{format_bytes(self.usage.host_nbytes)} in RAM, copied on the current stream"

    def home(self, page: int) -> Home:
        assert page in self._reserved
        return "host"

    def reserve(self, page: int, nbytes: int) -> None:
        if not self._charge(nbytes):
            raise SpillError(f"max_host_memory has no room for a page of {format_bytes(nbytes)}; raise it")
        self._reserved[page] = nbytes

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        return _copied(lambda: into.copy_(self._stored[page]), after)

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        return _copied(lambda: self._room(page).copy_(source), after)

    def release(self, page: int) -> None:
        self._stored.pop(page, None)
        self._refund(self._reserved.pop(page))

    def close(self) -> None:
        for page in list(self._reserved):
            self.release(page)

    def _room(self, page: int) -> Tensor:
        """Return the page's memory, which is allocated at its first write."""
        if page not in self._stored:
            self._stored[page] = new_host_buffer(self._reserved[page])
        return self._stored[page]


def _copied(move: Callable[[], Tensor], after: Sequence[Transfer]) -> Transfer:
    try:
        for transfer in after:
            transfer.wait()
        move()
    except SpillError as error:
        return EndedTransfer(error.with_traceback(None))
    except (MemoryError, RuntimeError) as error:  # no memory for the page, or the device refused the copy
        return EndedTransfer(SpillError(f"could not copy a page between host and device: {error}"))
    return EndedTransfer()
