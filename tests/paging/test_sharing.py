"""Pagers as optimizers hold them: shared, copied, dropped, forked, used by several threads, on a real disk."""

from __future__ import annotations

import copy
import gc
import mmap
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from simulated import SimulatedTier, simulated_pager

from pagedopt.errors import BudgetError
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.pager import Pager, shared_pager
from pagedopt.paging.sweep import sweep

CPU = torch.device("cpu")
PAGE = 64 << 10


@pytest.fixture(autouse=True)
def _without_gc() -> Iterator[None]:
    """Whatever is freed here is freed by reference counting. One OpenMP thread, as forked children have no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    torch.set_num_threads(threads)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[mmap.mmap]:
    """All memory of frames that is alive."""
    alive: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    class WatchedMemory(mmap.mmap):
        def __init__(self, *args: int, **options: int) -> None:
            alive.add(self)

    monkeypatch.setattr(mmap, "mmap", WatchedMemory)
    return alive


def small_pager(folder: Path, *, frames: int = 6, depth: int = 1) -> Pager:
    return Pager(page_size=PAGE, max_host_memory=frames * PAGE, spill_dir=folder, prefetch_depth=depth)


def open_pages(pager: DevicePager, count: int) -> list[int]:
    pages = []
    for _ in range(count):
        page, _ = pager.open_page()
        pager.claim(page, pager.page_nbytes)
        pager.close_page()
        pages.append(page)
    return pages


def add_one(pager: DevicePager, pages: list[int], expected: int) -> None:
    for _, frame in sweep(pager, pages):
        assert (frame == expected).all()
        frame.add_(1)


def num_files() -> int:
    return psutil.Process().num_fds()


def io_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pagedopt-io")]


def test_optimizers_with_equal_configs_share_a_pager_that_dies_with_the_last() -> None:
    config = PagingConfig.parse(max_host_memory="1MiB", page_size="64KiB")
    first, second = shared_pager(config), shared_pager(PagingConfig.parse(max_host_memory=1 << 20, page_size=PAGE))
    assert first is second
    assert shared_pager(PagingConfig.resident()) is not first
    watched = weakref.ref(first)
    del first
    assert watched() is second
    del second
    assert watched() is None


def test_a_thousand_pagers_open_nothing_and_cost_microseconds() -> None:
    before, threads = num_files(), threading.active_count()
    start = time.thread_time()  # of processor, so that other processes do not count
    pagers = [shared_pager(PagingConfig.parse(max_host_memory=10 << 20)).on(CPU) for _ in range(1000)]
    seconds = time.thread_time() - start
    assert num_files() == before
    assert threading.active_count() == threads
    assert len(set(map(id, pagers))) >= 1
    assert seconds < 0.5  # it takes a fiftieth of that


def test_there_is_one_pager_per_device(tmp_path: Path) -> None:
    pager = small_pager(tmp_path)
    assert pager.on(CPU) is pager.on(torch.device("cpu", 0))
    assert list(pager.devices()) == [CPU]


def test_an_explicit_budget_is_checked_as_soon_as_the_device_is_known(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="max_host_memory"):
        small_pager(tmp_path, frames=4, depth=2).on(CPU)


def test_a_copied_or_unpickled_pager_is_a_new_one_of_the_same_config(tmp_path: Path) -> None:
    pager = small_pager(tmp_path)
    open_pages(pager.on(CPU), 3)
    for other in (copy.deepcopy(pager), copy.copy(pager), pickle.loads(pickle.dumps(pager))):
        assert other is not pager
        assert other.config == pager.config
        assert other.on(CPU).memory.num_pages == 0


def test_state_larger_than_the_budget_survives_on_the_disk(tmp_path: Path) -> None:
    pager = small_pager(tmp_path).on(CPU)
    pages = open_pages(pager, 20)
    for step in range(4):
        add_one(pager, pages, step)
    memory = pager.memory
    assert memory.frame_nbytes <= memory.budget_nbytes == 6 * PAGE
    assert memory.disk_nbytes == 20 * PAGE
    assert pager.stats.bytes_read["disk"] > 0


def test_the_spill_file_is_private_and_has_no_name(tmp_path: Path) -> None:
    pager = small_pager(tmp_path).on(CPU)
    open_pages(pager, 20)
    assert list(tmp_path.iterdir()) == []


def test_the_last_release_closes_the_file_and_the_threads(tmp_path: Path) -> None:
    before, others = num_files(), set(io_threads())
    pager = small_pager(tmp_path).on(CPU)
    pages = open_pages(pager, 20)
    add_one(pager, pages, 0)
    assert num_files() == before + 1
    assert set(io_threads()) - others
    for page in pages:
        pager.release(page)
    assert num_files() == before
    assert not set(io_threads()) - others
    add_one(pager, open_pages(pager, 20), 0)


def test_a_deleted_pager_frees_all_at_once_without_the_garbage_collector(
    tmp_path: Path, buffers: weakref.WeakSet[mmap.mmap]
) -> None:
    before, others = num_files(), set(io_threads())
    pager = small_pager(tmp_path)
    on_cpu = pager.on(CPU)
    pages = open_pages(on_cpu, 20)
    add_one(on_cpu, pages, 0)
    assert len(buffers) >= 6
    watched = weakref.ref(on_cpu)
    del pager, on_cpu
    assert watched() is None
    assert not buffers
    assert num_files() == before
    assert not set(io_threads()) - others


def test_a_failed_pager_frees_all_at_once_too(tmp_path: Path) -> None:
    before = num_files()
    pager = small_pager(tmp_path).on(CPU)
    pages = open_pages(pager, 20)
    add_one(pager, pages, 0)
    fail_with_traceback(pager, pages[0], lambda: int("broken"))
    fail_with_traceback(pager, pages[1], be_picky)
    with pytest.raises(RuntimeError, match="broken"):
        pager.pin(pages[1])
    watched = weakref.ref(pager)
    del pager
    assert watched() is None
    assert num_files() == before


class Picky(Exception):
    """An exception that cannot be copied."""

    def __init__(self, *, why: str) -> None:
        super().__init__(why)


def be_picky() -> None:
    raise Picky(why="broken")


def fail_with_traceback(pager: DevicePager, page: int, stop: Callable[[], object]) -> None:
    try:
        stop()
    except Exception as caught:  # noqa: BLE001 - the traceback refers to this frame, and so to the pager
        pager.fail(page, caught)


def test_frames_go_back_to_the_system_one_by_one_as_pages_are_released(buffers: weakref.WeakSet[mmap.mmap]) -> None:
    pager = Pager.from_config(PagingConfig.resident()).on(CPU)
    pages = open_pages(pager, 5)
    add_one(pager, pages, 0)
    for left in (4, 3, 2, 1, 0):
        pager.release(pages.pop())
        assert len(buffers) == left


def test_two_threads_sweep_one_pager(tmp_path: Path) -> None:
    pager = small_pager(tmp_path, frames=5, depth=2).on(CPU)
    failures: list[BaseException] = []

    def train(pages: list[int]) -> None:
        try:
            for step in range(15):
                add_one(pager, pages, step)
            for page in pages:
                pager.release(page)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=train, args=(open_pages(pager, 9),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert pager.memory.num_pages == 0


def test_a_thread_with_no_pin_waits_for_a_frame(tmp_path: Path) -> None:
    pager = small_pager(tmp_path, frames=3).on(CPU)
    pages = open_pages(pager, 4)
    for page in pages[:3]:
        pager.pin(page)
    got: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: got.append(pager.pin(pages[3])))
    thread.start()
    time.sleep(0.05)
    assert not got
    pager.unpin(pages[0], dirty=False)
    thread.join(timeout=120)
    assert len(got) == 1


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_child(function: object) -> int:
    """Run `function` in a forked child and return its exit status, 0 if it returned."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            function()  # type: ignore[operator]
        except BaseException:  # noqa: BLE001 - the parent sees the status
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_removes_nothing_of_its_parents(tmp_path: Path) -> None:
    pager = small_pager(tmp_path)
    on_cpu = pager.on(CPU)
    pages = open_pages(on_cpu, 20)
    add_one(on_cpu, pages, 0)

    def drop_everything() -> None:
        nonlocal pager, on_cpu
        for page in pages:
            on_cpu.release(page)
        on_cpu.close()
        del pager, on_cpu
        gc.collect()

    assert in_child(drop_everything) == 0
    for step in range(1, 4):
        add_one(on_cpu, pages, step)


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_waits_for_no_transfer_of_its_parents() -> None:
    tier = SimulatedTier()
    pager = simulated_pager(3, tier)
    pages = open_pages(pager, 6)
    for step in range(2):
        add_one(pager, pages, step)
    assert tier.under_way

    def release_all() -> None:
        for page in pages:
            pager.release(page)
        pager.close()
        assert tier.under_way
        assert len(tier.reserved) == 6

    assert in_child(release_all) == 0


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_cannot_write_into_its_parents_file(tmp_path: Path) -> None:
    pager = small_pager(tmp_path).on(CPU)
    pages = open_pages(pager, 20)
    add_one(pager, pages, 0)

    def touch() -> None:
        with pytest.raises(RuntimeError, match="paged by the parent process"):
            pager.pin(pages[0])
        config = PagingConfig.parse(page_size=PAGE, max_host_memory=6 * PAGE, spill_dir=tmp_path, prefetch_depth=1)
        own = shared_pager(config).on(CPU)
        add_one(own, open_pages(own, 20), 0)

    assert in_child(touch) == 0
    add_one(pager, pages, 1)


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_resident_state_goes_on_in_a_forked_child() -> None:
    pager = Pager.from_config(PagingConfig.resident()).on(CPU)
    pages = open_pages(pager, 2)
    for page in pages:
        pager.pin(page).fill_(5)
        pager.unpin(page, dirty=True)

    def go_on() -> None:
        add_one(pager, pages, 5)

    assert in_child(go_on) == 0
    add_one(pager, pages, 5)


CHILD = """
    import sys, torch
    from pagedopt.paging.pager import Pager
    from pagedopt.paging.sweep import sweep
    pager = Pager(page_size=65536, max_host_memory=6 * 65536, spill_dir=sys.argv[1], prefetch_depth=1)
    on_cpu = pager.on(torch.device("cpu"))
    pages = []
    for _ in range(40):
        page, _ = on_cpu.open_page()
        on_cpu.claim(page, 65536)
        on_cpu.close_page()
        pages.append(page)
    print("ready", flush=True)
    steps = int(sys.argv[2])
    while steps:
        for _, frame in sweep(on_cpu, pages):
            frame.add_(1)
        steps -= 1
"""


def child(folder: Path, steps: int) -> subprocess.Popen[str]:
    program = textwrap.dedent(CHILD)
    command = [sys.executable, "-W", "error", "-c", program, str(folder), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    with child(tmp_path, -1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_with_transfers_under_way_ends_quietly(tmp_path: Path) -> None:
    with child(tmp_path, 2) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0
    assert (out, err) == ("ready\n", "")
    assert list(tmp_path.iterdir()) == []


def test_paging_works_under_another_default_device_and_dtype(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            pager = small_pager(tmp_path).on(CPU)
            pages = open_pages(pager, 9)
            add_one(pager, pages, 0)
            add_one(pager, pages, 1)
    finally:
        torch.set_default_dtype(torch.float32)
