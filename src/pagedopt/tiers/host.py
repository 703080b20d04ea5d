"""Pages in pinned RAM: the home of an accelerator's pages as far as `max_host_memory` reaches.

A page's room is written by one copy and read by the next, so each copy follows the one before it in the same room, also
where the room went to another page meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pagedopt.errors import SpillError
from pagedopt.tiers.base import EndedTransfer, Home, TierUsage, Transfer
from pagedopt.tiers.slabs import Room, Slabs
from pagedopt.tiers.staged import to_be_followed
from pagedopt.tiers.streams import Mark, Streams
from pagedopt.units import format_bytes


@dataclass(slots=True, eq=False)
class _Place:
    nbytes: int
    room: Room


class HostTier:
    """A `Tier` of copies that the streams of a device do.

    Args:
        slabs: where room is taken.
        streams: of the device.
    """

    def __init__(self, slabs: Slabs, streams: Streams) -> None:
        self._slabs = slabs
        self._streams = streams
        self._places: dict[int, _Place] = {}

    @property
    def usage(self) -> TierUsage:
        return TierUsage(host_nbytes=sum(place.nbytes for place in self._places.values()))

    def describe(self) -> str:
        slabs = f"{self._slabs.num_slabs} slab{'s' * (self._slabs.num_slabs != 1)}"
        return f"{format_bytes(self.usage.host_nbytes)} in RAM, in {slabs} of {format_bytes(self._slabs.nbytes)}"

    def home(self, page: int) -> Home:
        assert page in self._places
        return "host"

    def reserve(self, page: int, nbytes: int) -> None:
        room = self._slabs.take()
        if room is None:
            raise SpillError(f"max_host_memory has no room for a page of {format_bytes(nbytes)}; raise it")
        self._places[page] = _Place(nbytes, room)

    def read(self, page: int, into: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        return self._start(self._streams.copy_up, page, after, lambda memory: (into, memory))

    def write(self, page: int, source: Tensor, *, after: Sequence[Transfer] = ()) -> Transfer:
        return self._start(self._streams.copy_down, page, after, lambda memory: (memory, source))

    def release(self, page: int) -> None:
        self._slabs.give(self._places.pop(page).room)

    def finish(self) -> None:
        self._streams.finish_copies()

    def close(self) -> None:
        self._streams.finish_copies()
        for page in list(self._places):
            self.release(page)

    def _start(
        self,
        copy: Callable[[Tensor, Tensor, Sequence[Transfer]], Mark],
        page: int,
        after: Sequence[Transfer],
        ends: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Transfer:
        place = self._places[page]
        last_in, index = place.room.slab.last, place.room.index
        follows = [to_be_followed(transfer) for transfer in after]
        try:
            into, source = ends(self._slabs.memory(place.room)[: place.nbytes])
            if index in last_in:
                follows.append(last_in[index])
            mark = last_in[index] = copy(into, source, follows)
        except SpillError as error:  # of a transfer to be followed
            return EndedTransfer(error.with_traceback(None))
        except (MemoryError, RuntimeError) as error:  # no memory for the slab, or the device refused the copy
            return EndedTransfer(SpillError(f"could not copy a page between host and device: {error}"))
        return mark
