"""What the GPU's cases do around the device, on devices that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import gpu_cases, peers
from bench.accelerator import BOTH, DOWN, UP, CannotRunError, Gpu, Rehearsal, accelerator_for, copy_probes
from bench.measure import Candidate, Refusal
from bench.workload import Shape


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A torch.madeup that tells in which order it was called."""
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self._name = "begin" if "made" not in calls else "end"
            calls.append("made")

        def record(self) -> None:
            calls.append(self._name)

        def synchronize(self) -> None:
            calls.append(f"await {self._name}")

        def elapsed_time(self, other: object) -> float:
            return 3000.0

    module = SimpleNamespace(
        Event=Event,
        current_device=lambda: 0,
        get_device_name=lambda device: "A GPU",
        synchronize=lambda device: calls.append("synchronize"),
        mem_get_info=lambda device: (1 << 30, 1 << 31),
        is_available=lambda: False,
        empty_cache=lambda: None,
    )
    monkeypatch.setattr(torch, "meta", module, raising=False)
    return calls


def test_a_gpu_s_clock_stops_when_every_stream_is_done(calls: list[str]) -> None:
    seconds = Gpu("meta").clock(lambda: calls.append("step"), 3)
    assert seconds == 1.0
    assert calls[2:] == ["synchronize", "begin", "step", "step", "step", "synchronize", "end", "await end"]


def test_without_a_gpu_the_bench_says_what_to_do(calls: list[str]) -> None:
    with pytest.raises(CannotRunError, match="finds no meta device here; run it on a machine with a GPU, or rehearse"):
        accelerator_for("meta", rehearse=False)
    with pytest.raises(CannotRunError, match="--device cpu goes with --quick"):
        accelerator_for("cpu", rehearse=False)
    with pytest.raises(CannotRunError, match="--device must be cuda or xpu"):
        accelerator_for("toaster", rehearse=True)


def test_copies_move_up_down_and_both_ways() -> None:
    probes = {probe.name: probe.prepare() for probe in copy_probes(Rehearsal(), 4096)}
    assert {name: ready.nbytes for name, ready in probes.items()} == {BOTH: 8192, UP: 4096, DOWN: 4096}
    for ready in probes.values():
        ready.step()


class Crowded(Rehearsal):
    """An accelerator with little memory left."""

    def free_nbytes(self) -> int:
        return 8 << 20


def test_managed_memory_beyond_a_quarter_of_what_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "absence", lambda *_, **__: None)
    monkeypatch.setattr(peers.Entrant, "runs", lambda *_: "")
    few, many = Shape(1, (1_000_000,)), Shape(1, (1_100_000,))  # 2.03 bytes of state a value
    assert isinstance(gpu_cases.bitsandbytes_paged(few, torch.bfloat16, Crowded()), Candidate)
    refused = gpu_cases.bitsandbytes_paged(many, torch.bfloat16, Crowded())
    assert isinstance(refused, Refusal)
    assert "more than a quarter of the 8 MiB free on the card" in refused.reason


def test_the_tensor_shrinks_to_what_all_candidates_can_have() -> None:
    assert gpu_cases.one_tensor(Rehearsal(), quick=False).numel == (1 << 34) // 160
    big: Any = SimpleNamespace(free_nbytes=lambda: 1 << 40)
    assert gpu_cases.one_tensor(big, quick=False).numel == 500_000_000
