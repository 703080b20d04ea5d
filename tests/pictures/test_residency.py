"""From a recording to which page was where: made-up events, and the picture they must give."""

from __future__ import annotations

from pagedopt.paging.events import PageEvent
from pagedopt.pictures.residency import END_OF_STEP, Cell, Event, Recording, residency

LETTERS = {Cell.AWAY: ".", Cell.RESIDENT: "#", Cell.WRITTEN: "W", Cell.READ: "R"}


def _drawn(text: str, *, num_pages: int) -> tuple[list[str], list[int]]:
    """Return a row of letters for each page, and the ends of steps, of events such as `read0 pin0 | pin1`."""
    events = [
        Event(float(i), END_OF_STEP, -1) if word == "|" else Event(float(i), word.rstrip("0123456789"), int(word[-1]))
        for i, word in enumerate(text.split())
    ]
    drawn = residency(events, num_pages=num_pages)
    return ["".join(LETTERS[column[page]] for column in drawn.columns) for page in range(num_pages)], drawn.step_ends


def test_a_column_is_an_update_of_a_page() -> None:
    rows, _ = _drawn("fault0 pin0 unpin0 fault1 pin1 unpin1 hit0 pin0 unpin0 |", num_pages=2)

    assert rows == ["###", ".##"]


def test_what_happens_before_the_first_pin_is_in_the_first_column() -> None:
    rows, _ = _drawn("read1 pin0 | pin1 |", num_pages=2)

    assert rows == ["##", "R#"]


def test_a_page_is_away_until_it_arrives_and_after_it_is_evicted() -> None:
    rows, _ = _drawn("pin0 pin1 evict0 pin2 read0 pin0 |", num_pages=3)

    assert rows[0] == "#.R#"


def test_a_page_that_was_written_and_read_in_one_update_was_read() -> None:
    rows, _ = _drawn("pin0 write1 evict1 read1 read2 write2 |", num_pages=3)

    assert rows == ["#", "R", "R"]


def test_each_step_ends_after_its_updates_and_what_follows_is_the_next_steps() -> None:
    rows, step_ends = _drawn("pin0 pin1 | write1 evict1 pin0 read1 pin1 |", num_pages=2)

    assert step_ends == [2, 4]
    assert rows == ["####", ".#R#"]


def test_a_recording_writes_down_time_name_and_page() -> None:
    ticks = iter([0.5, 1.5, 2.5])
    recording = Recording(clock=lambda: next(ticks))

    recording(PageEvent("read", 3, "disk", None))
    recording(PageEvent("pin", 3, "disk", None))
    recording.end_step()

    assert recording.events == [Event(0.5, "read", 3), Event(1.5, "pin", 3), Event(2.5, END_OF_STEP, -1)]
