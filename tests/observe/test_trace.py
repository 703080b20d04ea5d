"""The trace: of the documented format, true to the statistics, whole whatever happens, and free when it is over."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from watched import BUDGET, PAGE_NBYTES, small_optimizer

import pagedopt
from pagedopt import StateLostError
from pagedopt.observe import trace as trace_module
from pagedopt.observe.timeline import Timeline, Told
from pagedopt.observe.trace_file import TraceFile
from pagedopt.optim.step import Step
from pagedopt.paging.events import PageEvent
from pagedopt.tiers.base import Span

# What the Trace Event Format says each phase must have, beside ph, name, pid and tid.
FIELDS = {
    "X": {"ts", "dur", "cat", "args"},
    "i": {"ts", "s", "cat", "args"},
    "C": {"ts", "cat", "args"},
    "s": {"ts", "id", "cat", "args"},
    "f": {"ts", "id", "bp", "cat", "args"},
    "M": {"args"},
}


def _events(path: Path) -> list[dict[str, Any]]:
    events = json.loads(path.read_text())
    assert isinstance(events, list)
    return events


def _named(events: list[dict[str, Any]], ph: str, name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == ph and event["name"] == name]


def _traced(tmp_path: Path, *, num_steps: int = 3) -> tuple[list[dict[str, Any]], pagedopt.PagingStats]:
    optimizer = small_optimizer(tmp_path)
    with pagedopt.trace(optimizer, tmp_path / "trace.json"):
        for _ in range(num_steps):
            optimizer.step()
    return _events(tmp_path / "trace.json"), optimizer.paging_stats()


def test_every_event_has_the_documented_fields(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    for event in events:
        assert set(event) == {"ph", "name", "pid", "tid"} | FIELDS[event["ph"]], event
        assert event["pid"] == os.getpid()
        assert isinstance(event["tid"], int)
        assert event.get("ts", 0.0) >= 0.0
        assert event.get("dur", 0.0) >= 0.0
        assert event["ph"] != "C" or all(isinstance(value, int) for value in event["args"].values())
        assert event["ph"] != "i" or event["s"] in ("g", "p", "t")


def test_the_process_and_every_track_have_a_name(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    names = {event["tid"]: event["args"]["name"] for event in _named(events, "M", "thread_name")}
    assert {event["tid"] for event in events if event["ph"] in "Xisf"} <= set(names)
    assert "MainThread" in names.values()
    assert any(name.startswith("cpu pagedopt-io") for name in names.values())
    assert _named(events, "M", "process_name")[0]["args"] == {"name": "pagedopt"}


def test_slices_of_a_track_nest(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    slices = [event for event in events if event["ph"] == "X"]
    for tid in {event["tid"] for event in slices}:
        ends: list[float] = []
        for event in sorted((e for e in slices if e["tid"] == tid), key=lambda e: (e["ts"], -e["dur"])):
            while ends and ends[-1] <= event["ts"] + 0.001:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1] + 0.002, event  # both ends rounded
            ends.append(event["ts"] + event["dur"])


def test_steps_updates_and_waits_are_on_the_thread_that_steps_and_moves_are_not(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    tids = {name: {event["tid"] for event in _named(events, "X", name)} for name in ("step", "update", "read", "write")}
    assert tids["step"] == tids["update"]
    assert len(tids["step"]) == 1
    assert not tids["step"] & (tids["read"] | tids["write"])
    assert len(_named(events, "X", "step")) == 3


def test_the_trace_counts_what_the_statistics_count(tmp_path: Path) -> None:
    events, stats = _traced(tmp_path)

    steps = [event["args"] for event in _named(events, "X", "step")]
    assert sum(step["disk_bytes_read"] for step in steps) == stats.bytes_read["disk"] > 0
    assert sum(step["disk_bytes_written"] for step in steps) == stats.bytes_written["disk"] > 0
    assert sum(step["hits"] for step in steps) == stats.hits
    assert sum(step["faults"] for step in steps) == stats.faults == len(_named(events, "i", "fault"))
    assert sum(step["prefetches"] for step in steps) == stats.prefetches == len(_named(events, "i", "prefetch"))
    assert sum(step["waits"] for step in steps) == stats.stalls == len(_named(events, "X", "wait"))
    assert sum(step["wait_us"] for step in steps) == pytest.approx(stats.stalled_seconds * 1e6, abs=1)
    assert len(_named(events, "i", "evict")) == stats.evictions
    last = _named(events, "C", "cpu: bytes moved")[-1]["args"]
    assert last == {"read": stats.bytes_read["disk"], "written": stats.bytes_written["disk"]}
    moved = Counter(event["name"] for event in events if event["name"].endswith("still under way"))
    assert len(_named(events, "X", "read")) + moved["read still under way"] == stats.bytes_read["disk"] // PAGE_NBYTES
    written = stats.bytes_written["disk"] // PAGE_NBYTES
    assert len(_named(events, "X", "write")) + moved["write still under way"] == written


def test_bytes_in_frames_never_exceed_the_budget_and_no_page_is_missing(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    state = [event["args"] for event in _named(events, "C", "cpu: state")]
    assert max(values["frames"] for values in state) == BUDGET
    totals = [sum(values.values()) for values in state]
    assert all(later >= earlier for earlier, later in pairwise(totals))
    assert totals[-1] % PAGE_NBYTES == 0
    assert totals[-1] > BUDGET


def test_an_arrow_leads_from_each_read_to_the_update_that_needed_it(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    begins = {event["id"]: event for event in _named(events, "s", "to use")}
    ends = {event["id"]: event for event in _named(events, "f", "to use")}
    reads = {(event["tid"], event["ts"]): event["args"]["page"] for event in _named(events, "X", "read")}
    updates = {(event["tid"], event["ts"]): event["args"]["page"] for event in _named(events, "X", "update")}
    assert begins.keys() == ends.keys()
    assert begins
    for number, begin in begins.items():
        end = ends[number]
        assert reads[begin["tid"], begin["ts"]] == updates[end["tid"], end["ts"]]
        assert begin["ts"] <= end["ts"]


def test_an_update_says_how_its_page_was_found(tmp_path: Path) -> None:
    events, _ = _traced(tmp_path)

    found = {event["args"]["found"] for event in _named(events, "X", "update")}
    assert found == {"fault", "prefetched", "resident"}  # the first step's pages are new


def test_the_file_is_whole_when_the_body_raises(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)

    def body() -> None:
        with pagedopt.trace(optimizer, tmp_path / "trace.json"):
            optimizer.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert len(_named(_events(tmp_path / "trace.json"), "X", "step")) == 1


def test_a_step_that_raises_is_in_the_trace_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = small_optimizer(tmp_path)
    optimizer.step()
    monkeypatch.setattr(Step, "_update", lambda *_: 1 / 0)

    with pagedopt.trace(optimizer, tmp_path / "trace.json"):
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        with pytest.raises(StateLostError):
            optimizer.step()

    steps = _named(_events(tmp_path / "trace.json"), "X", "step")
    assert [step["args"]["ended"] for step in steps] == ["by an exception"] * 2


def test_a_trace_changes_no_bit(tmp_path: Path) -> None:
    plain, traced = small_optimizer(tmp_path), small_optimizer(tmp_path)

    for _ in range(3):
        plain.step()
        with pagedopt.trace(traced, tmp_path / "trace.json"):
            traced.step()

    assert torch.equal(plain.param_groups[0]["params"][0], traced.param_groups[0]["params"][0])


def test_after_its_last_step_a_trace_costs_nothing(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)

    with pagedopt.trace(optimizer, tmp_path / "trace.json", steps=2):
        for _ in range(2):
            optimizer.step()
        written = (tmp_path / "trace.json").read_bytes()
        assert not any(p._residency._observers for p in optimizer.pager.devices().values())
        optimizer.step()

    assert (tmp_path / "trace.json").read_bytes() == written
    assert len(_named(_events(tmp_path / "trace.json"), "X", "step")) == 2
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_nothing_is_lost_where_a_step_tells_more_than_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MAX_NOTES", 20)
    events, stats = _traced(tmp_path)

    assert sum(event["args"]["hits"] for event in _named(events, "X", "step")) == stats.hits
    assert len(_named(events, "X", "trace written")) > 3
    assert all(event["args"]["events"] <= 20 for event in _named(events, "X", "trace written"))


def test_training_outlives_a_trace_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = small_optimizer(tmp_path)
    done: list[int] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    def body() -> None:
        with pagedopt.trace(optimizer, tmp_path / "trace.json"):
            monkeypatch.setattr(TraceFile, "_write", full)
            for step in range(3):
                optimizer.step()
                done.append(step)

    with pytest.raises(OSError, match="no space left"):
        body()
    assert done == [0, 1, 2]


def test_a_path_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), pagedopt.trace(small_optimizer(tmp_path), tmp_path / "no" / "trace.json"):
        pass


def test_what_is_no_optimizer_of_pagedopt_is_refused() -> None:
    torchs = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])

    with pytest.raises(TypeError, match="AdamW"):
        pagedopt.trace(torchs, "trace.json")
    with pytest.raises(ValueError, match="at least 1"):
        pagedopt.trace(torchs, "trace.json", steps=0)


def test_reads_outside_a_step_are_no_updates(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    optimizer.step()

    with pagedopt.trace(optimizer, tmp_path / "trace.json"):
        optimizer.state_dict()

    events = _events(tmp_path / "trace.json")
    assert _named(events, "X", "use")
    assert not _named(events, "X", "update")


def test_two_traces_of_one_pager_both_see_all(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)

    with pagedopt.trace(optimizer, tmp_path / "one.json"), pagedopt.trace(optimizer, tmp_path / "two.json"):
        optimizer.step()

    counts = [len(_named(_events(tmp_path / name), "X", "update")) for name in ("one.json", "two.json")]
    assert counts[0] == counts[1] > 0


def test_a_transfer_that_failed_is_in_the_trace() -> None:
    timeline = Timeline(1, 0.0)
    events = list(timeline.add_device("cpu", 8, "main"))
    for name in ("read", "drop"):
        events += timeline.take(Told(1.0, "main", "cpu", PageEvent(name, 3, "disk", None)))

    assert [event["name"] for event in events if event["ph"] == "i"] == ["pager of cpu", "drop", "read failed"]


def test_a_transfer_on_a_track_of_its_own_is_shown_at_the_time_it_took() -> None:
    """A stream's transfer says when it ran by the stream's clock, and may tell it long after."""
    timeline = Timeline(1, 100.0)
    events = list(timeline.add_device("cuda:0", 8, "main"))
    told = [("read", None), ("filled", Span("copy up", 100.5, 100.75))]
    for name, span in told:
        events += timeline.take(Told(102.0, "main", "cuda:0", PageEvent(name, 3, "host", span)))

    (read,) = _named(events, "X", "read")
    assert (read["ts"], read["dur"]) == (0.5e6, 0.25e6)
    assert {"name": "cuda:0 copy up"} in [event["args"] for event in _named(events, "M", "thread_name")]


def test_a_transfer_that_nobody_timed_is_an_instant_and_no_slice() -> None:
    timeline = Timeline(1, 0.0)
    events = list(timeline.add_device("cuda:0", 8, "main"))
    for name in ("read", "filled"):
        events += timeline.take(Told(1.0, "main", "cuda:0", PageEvent(name, 3, "host", None)))

    assert _named(events, "i", "read ended, time not taken")
    assert not _named(events, "X", "read")


def test_a_transfer_says_how_long_it_was_queued() -> None:
    timeline = Timeline(1, 0.0)
    events = list(timeline.add_device("cpu", 8, "main"))
    events += timeline.take(Told(1.0, "main", "cpu", PageEvent("read", 3, "disk", None)))
    events += timeline.take(Told(3.0, "main", "cpu", PageEvent("filled", 3, "disk", Span("io", 1.25, 2.0))))

    assert _named(events, "X", "read")[0]["args"]["queued_us"] == 0.25e6


class _Copy:
    """A transfer of a stream that has not come to its end."""

    is_done = False

    def done(self) -> bool:
        return self.is_done

    def wait(self) -> None:
        return

    def span(self) -> Span:
        assert self.is_done, "a stream knows when a copy ran once it has run"
        return Span("copies up", 1.0, 2.0)


def test_a_copy_that_still_runs_when_the_step_ends_is_written_once_it_ended(tmp_path: Path) -> None:
    optimizer, copy = small_optimizer(tmp_path), _Copy()
    with pagedopt.trace(optimizer, tmp_path / "trace.json") as traced:
        optimizer.step()
        traced._note("cpu", PageEvent("read", 999, "host", None))
        traced._note("cpu", PageEvent("filled", 999, "host", None, copy))
        optimizer.step()
        half = (tmp_path / "trace.json").read_text()
        copy.is_done = True

    assert "copies up" not in half
    assert half.count('"name":"step"') == 1, "what comes after it waits too, so that all stays in order"
    events = _events(tmp_path / "trace.json")
    assert len(_named(events, "X", "step")) == 2
    assert {"name": "cpu copies up"} in [event["args"] for event in _named(events, "M", "thread_name")]


@pytest.mark.gpu
def test_copies_of_a_gpu_are_slices_of_their_streams_within_the_trace(tmp_path: Path) -> None:
    param = torch.nn.Parameter(torch.zeros(48 * 32_000, device="cuda"))
    param.grad = torch.ones_like(param)
    optimizer = pagedopt.PagedAdamW8bit(
        [param], page_size=PAGE_NBYTES, max_gpu_memory=6 * PAGE_NBYTES, spill_dir=tmp_path
    )
    with pagedopt.trace(optimizer, tmp_path / "trace.json"):
        for _ in range(4):
            optimizer.step()

    events = _events(tmp_path / "trace.json")
    tracks = {event["tid"]: event["args"]["name"] for event in _named(events, "M", "thread_name")}
    ends = _named(events, "i", "end of trace")[0]["ts"]
    for name, track in (("read", "cuda:0 copies up"), ("write", "cuda:0 copies down")):
        copies = _named(events, "X", name)
        assert {tracks[copy["tid"]] for copy in copies} == {track}
        assert all(copy["dur"] > 0 and copy["ts"] + copy["dur"] <= ends + 100 for copy in copies)


def test_updates_made_in_backward_are_updates(tmp_path: Path) -> None:
    optimizer = small_optimizer(tmp_path)
    (param,) = optimizer.param_groups[0]["params"]
    with pagedopt.step_in_backward(optimizer), pagedopt.trace(optimizer, tmp_path / "trace.json"):
        param.sum().backward()
        optimizer.step()

    events = _events(tmp_path / "trace.json")
    assert len(_named(events, "X", "update")) == optimizer.memory_stats().pages
    assert not _named(events, "X", "use")
