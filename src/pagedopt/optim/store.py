"""Where each parameter's state lies, and its arrays as tensors: the one place that joins formats and pages.

    Record   one parameter: its format, its segments (page, offsets), its step and, with clipping, its gradient norms
    Store    the records of one optimizer; reads and writes whole arrays through the pager, page by page

What is shown is a copy that is watched (`optim.lent`). `optim.parts` says how a parameter that is cut over processes is
shown.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedopt.codecs.base import FIELDS, Field, Per, StateFormat
from pagedopt.errors import StateLostError
from pagedopt.formats.entry import PIECE, Reader, Values
from pagedopt.formats.kept import Kept, Recoded
from pagedopt.layout import Grid, Segment, fit, grid_for
from pagedopt.optim.counters import StepCounters
from pagedopt.optim.lent import LentCopies
from pagedopt.optim.parts import Part
from pagedopt.paging.pager import DevicePager, Pager
from pagedopt.paging.sweep import pinned, sweep

_PLACING = threading.Lock()
"""One parameter is placed at a time: a pager fills one page, which optimizers in several threads may share."""


@dataclass(slots=True, eq=False)
class Record:
    """The state of one parameter.

    Attributes:
        part: the part of the parameter that is here.
        segments: `(page, segment)` in the order of the parameter's values.
        slot: its step, in the store's counters.
        gnorm_history: float32 [100] squared gradient norms, once percentile clipping has seen the parameter.
    """

    state_format: StateFormat
    grid: Grid
    part: Part
    device: torch.device
    pager: DevicePager
    slot: int
    segments: list[tuple[int, Segment]] = field(default_factory=list)
    gnorm_history: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of state in pages."""
        return sum(segment.nbytes for _, segment in self.segments)

    @property
    def is_decoded(self) -> bool:
        """Whether 8-bit state is shown as values."""
        return self.part.shows_decoded(self.state_format)

    @property
    def shown(self) -> tuple[Field, ...]:
        """The arrays that `optimizer.state[p]` has."""
        return FIELDS[StateFormat.FLOAT32 if self.is_decoded else self.state_format]

    def array_shape(self, array: Field) -> tuple[int, ...]:
        """Return the shape that the part of `array` has that is here."""
        if array.per is Per.VALUE:
            return self.part.local_shape
        return (self.grid.num_rows, self.grid.blocks_per_row) if array.per is Per.BLOCK else (1, 1)

    def as_shown(self, array: Field, local: Tensor) -> Tensor:
        """Return the part of `array` that is here as `optimizer.state[p]` has it."""
        return self.part.show(local, self.grid.blocks_per_row if array.per is Per.BLOCK else None)


class Store:
    """The state of one optimizer's parameters, in pages of `pager`.

    The pages are given back when the store is deleted or `clear`ed, with no help from the garbage collector.
    """

    def __init__(self, pager: Pager) -> None:
        self.pager = pager
        self.counters = StepCounters()
        self.records: dict[Tensor, Record] = {}
        self.lock = threading.RLock()
        self.version = 0
        """Moves when a record comes or goes."""
        self._lent = LentCopies()
        self._lost: StateLostError | None = None
        self._claims: dict[Record, list[int]] = {}
        weakref.finalize(self, _release, self._claims).atexit = False

    # -- records ------------------------------------------------------------------------------------------------------

    def place(self, parameter: Tensor, state_format: StateFormat, *, part: Part, device: torch.device) -> Record:
        """Give `parameter` zeroed state: claim its segments, one after the other in the pages being filled.

        Raises:
            SpillError, BudgetError: there is no room; nothing is claimed.
        """
        pager = self.pager.on(device)
        grid = grid_for(part.local_shape, state_format)
        record = Record(state_format, grid, part, device, pager, self.counters.new())
        claims: list[int] = []
        self._claims[record] = claims
        try:
            with _PLACING:
                try:
                    record.segments.extend(_claim(pager, grid, state_format, claims))
                except BaseException:
                    pager.close_page()  # it may wait to be claimed, and nobody will
                    raise
            self.records[parameter] = record
        except BaseException:
            self._give_up(record)
            raise
        self.version += 1
        return record

    def pages(self) -> dict[torch.device, set[int]]:
        """Return the pages that hold this store's state, by device."""
        found: dict[torch.device, set[int]] = {}
        for record in list(self.records.values()):  # whoever asks may be another thread than the one that places
            found.setdefault(record.device, set()).update(page for page, _ in record.segments)
        return found

    def discard(self, parameter: Tensor) -> None:
        """Release the state of `parameter`, if it has any."""
        record = self.records.pop(parameter, None)
        if record is None:
            return
        self.version += 1
        if not self.records:
            self._lost = None
        self._give_up(record)

    def clear(self) -> None:
        """Release all state; a store whose state was lost is whole again."""
        for parameter in list(self.records):
            self.discard(parameter)
        for record in list(self._claims):  # of a `discard` that was interrupted
            self._give_up(record)
        self._lost = None

    def _give_up(self, record: Record) -> None:
        """Give back the pages and the counter of a record that is, or never came to be, some parameter's."""
        self._lent.forget(record)
        record.pager.release_all(self._claims[record])
        del self._claims[record]
        self.counters.free(record.slot)

    # -- lost state ---------------------------------------------------------------------------------------------------

    def lose(self, error: StateLostError) -> None:
        """Refuse all use from now on, until the state is reloaded or cleared."""
        self._lost = error

    @property
    def is_lost(self) -> bool:
        """Whether state was lost or left half updated."""
        return self._lost is not None

    def check_whole(self) -> None:
        """Raise if state was lost or left half updated."""
        if self._lost is not None:
            raise StateLostError(str(self._lost)) from self._lost

    # -- arrays -------------------------------------------------------------------------------------------------------

    def segments(self, record: Record, *, dirty: bool) -> Generator[tuple[Segment, dict[int, Tensor]], None, None]:
        """Yield each segment with its arrays by index in `FIELDS`, views of its frame until the next is asked for."""
        segments = dict(record.segments)
        with closing(sweep(record.pager, list(segments), dirty=dirty)) as pages:
            for page, frame in pages:
                segment = segments[page]
                yield segment, {index: _array(frame, record, segment, index) for index in range(len(segment.offsets))}

    def reader(self, record: Record) -> Kept:
        """Return a reader of the moments of `record`, as they are when they are read."""

        def fill(index: int, start: int, stop: int, into: Tensor) -> None:
            self._fill(record, index, start, stop, into)

        return Kept(record.state_format, record.grid, fill)

    def _fill(self, record: Record, index: int, start: int, stop: int, into: Tensor) -> None:
        """Fill a flat CPU tensor with the elements [start, stop) of one array of `record`."""
        per = FIELDS[record.state_format][index].per
        first = bisect_right(record.segments, start, key=lambda inside: inside[1].bounds(per)[1])
        while start < stop:
            page, segment = record.segments[first]
            low, high = segment.bounds(per)
            count = min(high, stop) - start
            frames = pinned(record.pager, page, dirty=False)
            try:
                array = _array(next(frames), record, segment, index)
                into[into.numel() - (stop - start) :][:count].copy_(array[start - low : start - low + count])
            finally:
                frames.close()
            start, first = start + count, first + 1

    def take(self, record: Record, reader: Reader) -> None:
        """Overwrite the state of `record` with what `reader` reads, converted where it is of another format."""
        recoded = Recoded(reader, record.state_format, record.grid)
        with closing(self.segments(record, dirty=True)) as segments:
            for segment, arrays in segments:
                recoded.fill(segment, arrays)
        reader.finish()

    def read(self, record: Record, into: Mapping[int, Tensor]) -> None:
        """Fill CPU tensors with shown arrays of `record`, each named by its index in `shown`; a page is pinned once."""
        if record.is_decoded:
            self._read_decoded(record, into)
            return
        if not record.segments:  # an empty parameter: there is nothing to scale, and its one absmax is zero
            for target in into.values():
                target.zero_()
        fields = FIELDS[record.state_format]
        with closing(self.segments(record, dirty=False)) as segments:
            for segment, arrays in segments:
                for index, target in into.items():
                    start, stop = segment.bounds(fields[index].per)
                    target.view(-1)[start:stop].copy_(arrays[index])

    def _read_decoded(self, record: Record, into: Mapping[int, Tensor]) -> None:
        reader, numel = self.reader(record), record.grid.numel
        for start in range(0, numel, PIECE):
            stop = min(start + PIECE, numel)
            moments = reader.moments(start, stop)
            for index, values in enumerate((moments.exp_avg, moments.exp_avg_sq)):
                if index in into:
                    into[index].view(-1)[start:stop] = values

    def overwrite(self, record: Record, arrays: Mapping[int, Tensor]) -> None:
        """Overwrite shown arrays of `record`, each named by its index in `shown`, with tensors from any device."""
        if record.is_decoded:
            whole = {i: torch.empty(record.array_shape(field), device="cpu") for i, field in enumerate(record.shown)}
            self.read(record, whole)
            whole.update(arrays)
            self.take(record, Values(*(whole[index].reshape(-1) for index in (0, 1))))
            return
        fields = FIELDS[record.state_format]
        flat = {index: array.contiguous().view(-1) for index, array in arrays.items()}
        with closing(self.segments(record, dirty=True)) as segments:
            for segment, into in segments:
                for index, array in flat.items():
                    start, stop = segment.bounds(fields[index].per)
                    into[index].copy_(array[start:stop])

    # -- lent copies --------------------------------------------------------------------------------------------------

    def lend(self, record: Record, index: int) -> Tensor:
        """Return a shown array of `record` as a CPU tensor whose in-place changes reach the pages."""
        with self.lock:
            self.settle()
            self.check_whole()
            array = record.shown[index]
            return record.as_shown(array, self._lent.lend(self, record, index))

    def settle(self) -> None:
        """Write lent copies that changed back into the pages."""
        self._lent.settle(self)

    def refresh(self) -> None:
        """Bring lent copies that are still held up to date after a step."""
        self._lent.refresh(self)


def _claim(
    pager: DevicePager, grid: Grid, state_format: StateFormat, claims: list[int]
) -> Iterator[tuple[int, Segment]]:
    """Claim room for all blocks of `grid` in the page being filled and the pages after it."""
    block = 0
    while block < grid.num_blocks:
        page, used = pager.open_page()
        segment = fit(grid, state_format, block, used, pager.page_nbytes)
        if segment is not None:
            pager.claim(page, segment.offsets[0] + segment.nbytes, claims)
            block = segment.stop_block
            yield page, segment
        if block < grid.num_blocks:
            pager.close_page()  # it has no room for a block more


def _release(claims: dict[Record, list[int]]) -> None:
    """Give claims back to their pagers. A function of its own: a finalizer must not keep its store alive."""
    try:
        for record, pages in claims.items():
            record.pager.release_all(pages)
    except KeyboardInterrupt:  # a finalizer swallows it, and nobody comes again
        for record, pages in claims.items():
            record.pager.release_all(pages)
        raise


def _array(frame: Tensor, record: Record, segment: Segment, index: int) -> Tensor:
    """Return one array of a segment as a view of its frame."""
    array = FIELDS[record.state_format][index]
    offset = segment.offsets[index]
    return frame[offset : offset + segment.count(array.per) * array.dtype.itemsize].view(array.dtype)
