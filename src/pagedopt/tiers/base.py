"""What a tier is: a place for pages that are not in frames. It never asks what their bytes mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


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


class Tier(Protocol):
    """A home of pages, by page number.

    Laws: a page reads back as last written, or the read fails; transfers on one page happen in the order they were
    started; a transfer starts only after those in `after` ended well, and fails if one of them failed.
    """

    def reserve(self, page: int, nbytes: int) -> None:
        """Make room for `nbytes` of `page`, so that a later write cannot run out of room.

        Raises:
            SpillError: there is no room.
        """
        ...

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        """Start filling `into` (uint8, contiguous) with the first `len(into)` bytes of `page`."""
        ...

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        """Start storing `source` (uint8, contiguous); it must not change until the transfer is done."""
        ...

    def release(self, page: int) -> None:
        """Forget `page` and give its room back. No transfer of it may be under way."""
        ...

    def close(self) -> None:
        """Wait for every transfer, then give back all memory, files and threads. May be called again."""
        ...
