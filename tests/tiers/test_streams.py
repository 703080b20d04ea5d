"""The calls to torch that order copies, against its real signatures: without a GPU nothing else checks them."""

from __future__ import annotations

import warnings
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
import torch
from torch import Tensor

from pagedopt.paging import pager as pager_module
from pagedopt.paging.automatic import AllocatorReader, Reading, can_be_read
from pagedopt.paging.budget import Ledger
from pagedopt.paging.config import PagingConfig
from pagedopt.tiers.streams import DeviceStreams, InOrder, has_streams

GPU = torch.device("cuda", 1)


class Module:
    """`torch.cuda` with its signatures, that writes down what is done with streams and events."""

    def __init__(self, calls: list[str], real: Any) -> None:
        self.calls, self._real = calls, real
        self.current = "main"
        self._num_streams = self._num_events = 0
        self.mem_get_info = create_autospec(real.mem_get_info, return_value=(700, 1000))
        self.memory_stats_as_nested_dict = create_autospec(
            real.memory_stats_as_nested_dict,
            return_value={"reserved_bytes": {"all": {"current": 300}}, "allocated_bytes": {"all": {"peak": 250}}},
        )

    def Stream(self, device: torch.device) -> Any:
        assert device == GPU
        self._num_streams += 1
        return self._stream(("up", "down")[self._num_streams - 1])

    def _stream(self, name: str) -> Any:
        stream = create_autospec(self._real.Stream, instance=True)
        stream.name = name
        stream.wait_event.side_effect = lambda event: self.calls.append(f"{name} waits for {event.name}")
        stream.wait_stream.side_effect = lambda other: self.calls.append(f"{name} waits for {other.name}")
        stream.synchronize.side_effect = lambda: self.calls.append(f"host waits for {name}")
        return stream

    def Event(self, **options: Any) -> Any:
        self._real.Event.__new__  # noqa: B018 - there is one
        assert options in ({}, {"blocking": True})
        self._num_events += 1
        event = create_autospec(self._real.Event, instance=True)
        event.name = f"event {self._num_events}"
        event.record.side_effect = lambda stream: self.calls.append(f"{stream.name} records {event.name}")
        event.query.side_effect = lambda: True
        return event

    def current_stream(self, device: torch.device) -> Any:
        assert device == GPU
        return self._stream(self.current)

    def stream(self, stream: Any) -> Any:
        module = self

        class On:
            def __enter__(self) -> None:
                self.before, module.current = module.current, stream.name

            def __exit__(self, *_: object) -> None:
                module.current = self.before

        return On()


@pytest.fixture(params=["cuda", "xpu"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    module = Module(done, getattr(torch, request.param))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return done


def tensor(calls: list[str], name: str) -> Any:
    fake = MagicMock(spec=Tensor)
    fake.copy_.side_effect = lambda source, non_blocking: calls.append(f"{name} is copied, {non_blocking=}")
    fake.record_stream.side_effect = lambda stream: calls.append(f"{name} is kept for {stream.name}")
    return fake


def test_a_copy_follows_events_on_its_own_stream_and_leaves_one(calls: list[str]) -> None:
    streams = DeviceStreams(GPU)
    frame, memory = tensor(calls, "frame"), tensor(calls, "memory")
    update = streams.mark(streams.current())
    down = streams.copy_down(memory, frame, [update])
    up = streams.copy_up(frame, memory, [down])
    up.wait()
    assert up.done()
    assert calls == [
        "main records event 1",
        "down waits for event 1",
        "memory is copied, non_blocking=True",
        "frame is kept for down",
        "down records event 2",
        "up waits for event 2",
        "frame is copied, non_blocking=True",
        "frame is kept for up",
        "up records event 3",
        "main waits for event 3",
    ]


def test_a_frame_that_changes_streams_is_kept_for_both(calls: list[str]) -> None:
    streams = DeviceStreams(GPU)
    streams.hand_over(tensor(calls, "frame"), streams._module._stream("side"))
    assert calls == ["main waits for side", "frame is kept for main"]


def test_the_host_waits_for_the_two_copy_streams_and_never_for_the_device(calls: list[str]) -> None:
    DeviceStreams(GPU).finish_copies()
    assert calls == ["host waits for up", "host waits for down"]


@pytest.mark.usefixtures("calls")
def test_what_an_allocator_can_have_is_what_it_reserved_and_what_is_free() -> None:
    read = AllocatorReader(GPU)
    assert can_be_read(GPU)
    for _ in range(10):
        assert read() == Reading(capacity=1000, peak=250)
    module: Any = torch.get_device_module(GPU)
    assert module.mem_get_info.call_count == 1  # a call into the driver
    module.memory_stats_as_nested_dict.return_value["reserved_bytes"]["all"]["current"] = 400
    assert read() == Reading(capacity=1100, peak=250)


def test_tensors_without_bytes_need_no_streams_and_no_warning() -> None:
    device_pager = pager_module._device_pager(PagingConfig(), torch.device("meta"), Ledger(None))
    page, _ = device_pager.open_page()
    assert device_pager.pin(page).is_meta
    device_pager.unpin(page, dirty=True)


def test_a_device_without_streams_moves_pages_while_it_waits_and_it_is_said_once() -> None:
    mps = torch.device("mps")
    pager_module._say_that_copies_wait.cache_clear()
    assert not has_streams(mps)
    config = PagingConfig()
    with pytest.warns(UserWarning, match="mps has no streams that pagedopt could copy on"):
        device_pager = pager_module._device_pager(config, mps, Ledger(None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pager_module._device_pager(config, mps, Ledger(None))
    assert isinstance(device_pager._residency._streams, InOrder)
    into, source = torch.zeros(4), torch.ones(4)
    device_pager._residency._streams.copy_up(into, source, []).wait()
    assert torch.equal(into, source)
