"""The laws of paging, seen from the optimizer: bits, hints, new pages, lost writes, threads, bytes moved, budgets."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from child import report_of, run_python
from oracle import assert_same_params, assert_same_state, random_grads, random_params, train, twins
from pagedopt import (
    AdamW,
    AdamW8bit,
    BudgetError,
    CorruptPageError,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdamW32bit,
    Pager,
    SpillError,
    StateLostError,
)
from pagedopt.kernels.select import kernel_for
from pagedopt.optim.counters import StepCounters
from residue import needs_proc, open_files_in, smallest_budget
from strategies import STATE_KINDS, Machine, courses, machines, models

KIB, MIB = 1 << 10, 1 << 20

# In 32 bits about 40 pages of 64 KiB, in 8 bits about 10.
SHAPES = [(900, 257), (4, 1030), (50, 1600), (7,)]

each_bits = pytest.mark.parametrize("cls", [PagedAdamW32bit, PagedAdamW8bit], ids=lambda c: c.__name__)


def _paging(machine: Machine, folder: Path | str) -> dict[str, Any]:
    return {
        "page_size": machine.page_size,
        "prefetch_depth": machine.prefetch_depth,
        "max_host_memory": smallest_budget(machine.page_size, machine.prefetch_depth)
        + machine.spare_pages * smallest_budget(machine.page_size, 0),
        "spill_dir": folder,
    }


def _smallest(folder: Path | str, depth: int = 1, *, spare_pages: int = 0) -> dict[str, Any]:
    return {
        "page_size": "64KiB",
        "prefetch_depth": depth,
        "max_host_memory": smallest_budget("64KiB", depth) + spare_pages * 64 * KIB,
        "spill_dir": folder,
    }


# Law 1.


@pytest.mark.parametrize("kind", STATE_KINDS)
@settings(max_examples=12)
@given(data=st.data())
def test_paging_never_changes_a_bit(kind: str, data: st.DataObject) -> None:
    """Any model, course of training, page size, budget and depth: the bits of the class that keeps all resident."""
    model = data.draw(models())
    course = data.draw(courses(model))
    machine = data.draw(machines())
    ours, theirs = model.params(), model.params()
    with tempfile.TemporaryDirectory() as folder:
        paged = PagedAdamW(model.groups(ours), **STATE_KINDS[kind], **_paging(machine, folder))
        resident = AdamW(model.groups(theirs), **STATE_KINDS[kind])
        schedules = [course.new_scheduler(paged), course.new_scheduler(resident)]
        for step in range(course.num_steps):
            for params, opt, schedule in zip((ours, theirs), (paged, resident), schedules, strict=True):
                for p, grad in zip(params, course.gradients(params, step), strict=True):
                    p.grad = grad
                opt.step()
                if schedule is not None:
                    schedule.step()
        moved = sum(paged.paging_stats().bytes_written.values()) > 0
        event("pages were written back" if moved else "everything fitted")
        note(f"budget {paged.memory_stats()}")
        assert_same_params(ours, theirs)
        assert_same_state(paged.state_dict(), resident.state_dict())
        paged.close()


@pytest.mark.parametrize("kind", STATE_KINDS)
def test_pages_really_move_and_change_no_bit(kind: str, tmp_path: Path) -> None:
    """Law 1 where it can not hold for want of pages that move: state of three budgets, read and written every step."""
    ours, theirs = twins(random_params([(900, 257), (7,), (700, 500)]))
    paged, resident = PagedAdamW(ours, **STATE_KINDS[kind], **_smallest(tmp_path)), AdamW(theirs, **STATE_KINDS[kind])
    for step in range(4):
        paged.reset_paging_stats()
        train(paged, ours, range(step, step + 1))
        train(resident, theirs, range(step, step + 1))
        stats = paged.paging_stats()
        assert stats.bytes_written["disk"] > 0
        assert stats.bytes_read["disk"] > 0 or step == 0
    assert_same_params(ours, theirs)
    assert_same_state(paged.state_dict(), resident.state_dict())


@each_bits
def test_state_dicts_in_the_middle_change_no_bit(cls: Any, tmp_path: Path) -> None:
    """Law 1: reading all state between steps, and looking at single entries, moves pages and changes nothing."""
    ours, theirs = twins(random_params(SHAPES))
    paged, resident = cls(ours, **_smallest(tmp_path)), cls(theirs)
    for step in range(4):
        train(paged, ours, range(step, step + 1))
        train(resident, theirs, range(step, step + 1))
        assert_same_state(paged.state_dict(), resident.state_dict())
        assert torch.equal(paged.state[ours[0]]["exp_avg"], resident.state[theirs[0]]["exp_avg"])
    assert_same_params(ours, theirs)


@each_bits
def test_sharing_a_pager_changes_no_bit(cls: Any, tmp_path: Path) -> None:
    """Law 1: two optimizers in one budget, stepping in turn, with a pager of their own or a common one."""
    ours, others, theirs = twins(random_params(SHAPES), 3)
    pager = Pager(page_size="64KiB", max_host_memory=smallest_budget("64KiB", 1), prefetch_depth=1, spill_dir=tmp_path)
    first, second, resident = cls(ours, pager=pager), cls(others, pager=pager), cls(theirs)
    for step in range(3):
        for params, opt in ((ours, first), (others, second), (theirs, resident)):
            train(opt, params, range(step, step + 1))
    assert_same_params(ours, theirs)
    assert_same_params(others, theirs)
    assert_same_state(first.state_dict(), resident.state_dict())
    assert_same_state(second.state_dict(), resident.state_dict())


# Law 2.


@each_bits
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_prefetch_is_a_hint(cls: Any, depth: int, tmp_path: Path) -> None:
    """Law 2: at the smallest budget of its depth every depth trains, to the same bits as a depth of none."""
    ours, theirs = twins(random_params(SHAPES))
    ahead, none = cls(ours, **_smallest(tmp_path, depth)), cls(theirs, **_smallest(tmp_path, 0))
    train(ahead, ours, 3)
    train(none, theirs, 3)
    assert_same_params(ours, theirs)
    assert none.paging_stats().prefetches == 0
    assert (ahead.paging_stats().prefetches > 0) == (depth > 0)


# Law 3.


@each_bits
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_new_page_costs_no_read(cls: Any, depth: int, tmp_path: Path) -> None:
    """Law 3: the first step, and init_state before it, read no page that was not written; what was not is zero.

    At its end a step looks ahead to the first pages of the next one, which by then have been written.
    """
    params = random_params(SHAPES)
    opt = cls(params, **_smallest(tmp_path, depth))
    opt.init_state()
    assert not any(opt.state[p]["exp_avg"].any() or opt.state[p]["exp_avg_sq"].any() for p in params)
    assert sum(opt.paging_stats().bytes_read.values()) == 0
    train(opt, params, 1)
    assert sum(opt.paging_stats().bytes_read.values()) <= depth * 64 * KIB
    train(opt, params, range(1, 2))
    assert sum(opt.paging_stats().bytes_read.values()) > 0


@each_bits
def test_zeroed_state_is_the_state_of_a_new_optimizer(cls: Any, tmp_path: Path) -> None:
    """Law 3: all-zero bytes decode to zero: filling every state tensor with zeros starts over."""
    ours = random_params(SHAPES)
    opt = cls(ours, **_smallest(tmp_path))
    train(opt, ours, 3)
    for p in ours:
        for tensor in opt.state[p].values():
            tensor.zero_()
    theirs = twins(ours, 1)[0]
    fresh = cls(theirs)
    train(opt, ours, range(3, 5))
    train(fresh, theirs, range(3, 5))
    assert_same_params(ours, theirs)


# Law 5.

_CALLS = ["pread", "preadv", "pwrite", "pwritev"]


def _fail_io(monkeypatch: pytest.MonkeyPatch, prefix: str, after: int = 0) -> None:
    """Make every positioned read or write from the `after`-th on an input/output error."""
    calls = itertools.count()

    def failing(call: Callable[..., int]) -> Callable[..., int]:
        def fail(*args: Any) -> int:
            if next(calls) >= after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args)

        return fail

    for name in _CALLS:
        if name.startswith(prefix) and hasattr(os, name):
            monkeypatch.setattr(os, name, failing(getattr(os, name)))


def _later_as_saved(opt: Any, params: Any, saved: Any, saved_params: Any, way_back: str) -> None:
    """Load or clear what was lost; training is then what it would have been from there."""
    for p, q in zip(params, saved_params, strict=True):
        p.data.copy_(q)
    fresh = type(opt)(saved_params)
    if way_back == "load":
        opt.load_state_dict(saved)
        fresh.load_state_dict(saved)
    else:
        opt.state.clear()
    train(opt, params, range(2, 5))
    train(fresh, saved_params, range(2, 5))
    assert_same_params(params, saved_params)


needs_positioned_io = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="this system has no positioned I/O to fail")


@needs_positioned_io
@each_bits
@pytest.mark.parametrize("way_back", ["load", "clear"])
def test_after_a_lost_write_nothing_steps_until_state_is_reloaded(
    cls: Any, way_back: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 5: every later step is refused, before a parameter changes."""
    ours = random_params(SHAPES)
    opt = cls(ours, **_smallest(tmp_path))
    train(opt, ours, 2)
    saved, saved_params = opt.state_dict(), twins(ours, 1)[0]
    with monkeypatch.context() as patch:
        _fail_io(patch, "pwrite")
        with pytest.raises((SpillError, StateLostError)):
            train(opt, ours, 2)
    before = twins(ours, 1)[0]
    for _ in range(2):
        with pytest.raises(StateLostError, match=r"load_state_dict|clear"):
            train(opt, ours, 1)
    assert_same_params(ours, before)
    _later_as_saved(opt, ours, saved, saved_params, way_back)


@needs_positioned_io
@each_bits
@pytest.mark.parametrize("reads_before", [0, 1, 4])
def test_after_a_failed_read_a_step_was_not_begun_or_is_not_stepped_on(
    cls: Any, reads_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 5: a step that changed nothing can be tried again; one that changed something is lost state."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_smallest(tmp_path)), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    saved, saved_params = opt.state_dict(), twins(ours, 1)[0]
    with monkeypatch.context() as patch:
        _fail_io(patch, "pread", after=reads_before)
        with pytest.raises((SpillError, StateLostError)):
            train(opt, ours, range(2, 3))
    if all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)):
        train(opt, ours, range(2, 4))
        train(plain, theirs, range(2, 4))
        assert_same_params(ours, theirs)
        return
    with pytest.raises(StateLostError, match=r"load_state_dict|clear"):
        train(opt, ours, 1)
    _later_as_saved(opt, ours, saved, saved_params, "load")


@needs_positioned_io
@each_bits
def test_a_read_that_fails_after_a_step_does_not_spoil_state_through_copies_that_are_held(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 5: a copy that was brought up to date by halves is no edit of its holder, and goes nowhere."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_smallest(tmp_path, 0)), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    held = [opt.state[p]["exp_avg"] for p in ours]
    opt.reset_paging_stats()
    train(opt, ours, range(2, 3))
    train(plain, theirs, range(2, 3))
    reads_of_a_step = opt.step_stats().bytes_read["disk"] // (64 * KIB)
    with monkeypatch.context() as patch:
        _fail_io(patch, "pread", after=reads_of_a_step + 1)
        with pytest.raises(SpillError):
            train(opt, ours, range(3, 4))
    train(plain, theirs, range(3, 4))
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())
    assert all(torch.equal(held[i], plain.state[p]["exp_avg"]) for i, p in enumerate(theirs))
    train(opt, ours, range(4, 6))
    train(plain, theirs, range(4, 6))
    assert_same_params(ours, theirs)


@each_bits
@pytest.mark.parametrize("steps_before", [3, 1 << 24])
def test_a_step_that_did_not_begin_counts_nowhere(cls: Any, steps_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 5: also where a count in float32 stands still, and where Ctrl-C comes before anything was counted."""
    params = random_params(SHAPES)
    opt = cls(params)
    train(opt, params, 1)
    for p in params:
        opt.state[p]["step"].fill_(steps_before)
    for what in ("copy", "values"):
        with monkeypatch.context() as patch:
            patch.setattr(StepCounters, what, _interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(opt, params, 1)
        assert all(float(opt.state[p]["step"]) == steps_before for p in params)


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@needs_proc
@each_bits
def test_a_page_that_changed_on_disk_is_never_used(cls: Any, tmp_path: Path) -> None:
    """Law 5: bytes that are not those that were written are an error, not a moment."""
    params = random_params(SHAPES)
    opt = cls(params, **_smallest(tmp_path))
    train(opt, params, 2)
    opt.flush()
    for fd in Path("/proc/self/fd").iterdir():
        if fd.exists() or fd.is_symlink():
            link = str(fd.readlink()) if fd.is_symlink() else ""
            if link.startswith(str(tmp_path)):
                _flip_bytes(fd)
    with pytest.raises(CorruptPageError):
        train(opt, params, 1)
    with pytest.raises(StateLostError):
        train(opt, params, 1)


def _flip_bytes(path: Path) -> None:
    with path.open("r+b") as file:
        content = bytearray(file.read())
        content[::4096] = bytes(b ^ 0x40 for b in content[::4096])
        file.seek(0)
        file.write(content)


@each_bits
def test_an_interrupted_step_is_not_stepped_on(cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 5: state half updated by Ctrl-C is lost state, on the disk or not."""
    params = random_params(SHAPES)
    opt = cls(params, **_smallest(tmp_path))
    train(opt, params, 1)
    kernel = type(kernel_for(torch.device("cpu")))
    update, calls = kernel.update, itertools.count()

    def interrupted(*args: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(opt, params, 1)
    with pytest.raises(StateLostError):
        train(opt, params, 1)
    opt.state.clear()
    train(opt, params, 1)


# Law 6.


@pytest.mark.parametrize("kind", STATE_KINDS)
def test_the_number_of_threads_never_changes_a_bit(kind: str) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = random_params([(900, 257), (4, 1030), (7,)])
        opt = PagedAdamW(params, **STATE_KINDS[kind])
        train(opt, params, 4)
        results.append((params, opt.state_dict()))
    for params, state_dict in results[1:]:
        assert_same_params(params, results[0][0])
        assert_same_state(state_dict, results[0][1])


# Bytes moved.


@each_bits
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("spare_pages", [0, 3])
def test_a_steady_step_moves_what_a_cycle_must_and_no_more(
    cls: Any, depth: int, spare_pages: int, tmp_path: Path
) -> None:
    """(live state - budget) + working set, each way; at least what a cycle cannot keep."""
    params = random_params([*SHAPES, (400, 300)])
    opt = cls(params, **_smallest(tmp_path, depth, spare_pages=spare_pages))
    train(opt, params, 3)
    for step in range(3, 6):
        opt.reset_paging_stats()
        train(opt, params, range(step, step + 1))
        memory, stats = opt.memory_stats(), opt.paging_stats()
        live = memory.pages * 64 * KIB
        excess = live - memory.budget_bytes
        bound = excess + smallest_budget("64KiB", depth)
        assert excess > 0
        assert 0 < sum(stats.bytes_read.values()) <= bound
        assert 0 < sum(stats.bytes_written.values()) <= bound


@each_bits
def test_state_that_fits_its_budget_never_moves(cls: Any, tmp_path: Path) -> None:
    """Neither read nor written, whatever the number of steps; nothing is unlimited about it."""
    params = random_params(SHAPES)
    opt = cls(params, page_size="64KiB", max_host_memory="16MiB", spill_dir=tmp_path)
    train(opt, params, 5)
    assert sum(opt.paging_stats().bytes_read.values()) == 0
    assert sum(opt.paging_stats().bytes_written.values()) == 0
    assert opt.memory_stats().resident_pages == opt.memory_stats().pages


@each_bits
def test_only_live_pages_move(cls: Any, tmp_path: Path) -> None:
    """Pages none of whose parameters has a gradient are not read in a step."""
    params = random_params([(900, 257), (900, 257)])
    opt = cls(params, **_smallest(tmp_path))
    train(opt, params, 2)
    for step in range(2, 5):
        opt.reset_paging_stats()
        train(opt, params, range(step, step + 1), gradients=lambda s: [random_grads(params, s)[0], None])
    memory = opt.memory_stats()
    live = (memory.pages // 2 + 1) * 64 * KIB
    bound = live - memory.budget_bytes + smallest_budget("64KiB", 1)
    assert sum(opt.paging_stats().bytes_read.values()) <= bound


# Budgets.


@pytest.mark.parametrize("page_size", ["64KiB", 100_000, "1MiB"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_budget_below_the_working_set_is_refused_saying_the_smallest_that_works(
    page_size: Any, depth: int, tmp_path: Path
) -> None:
    """A `BudgetError`, which is a `ValueError`, before anything is changed; what it says works, a byte less not."""
    smallest = smallest_budget(page_size, depth)
    params = random_params([(1200, 1000)])
    paging: dict[str, Any] = {"page_size": page_size, "prefetch_depth": depth, "spill_dir": tmp_path}
    before = [p.detach().clone() for p in params]
    with pytest.raises(BudgetError, match="max_host_memory"):
        train(PagedAdamW(params, max_host_memory=smallest - 1, **paging), params, 1)
    assert_same_params(params, before)
    opt = PagedAdamW(params, max_host_memory=smallest, **paging)
    train(opt, params, 2)
    assert opt.memory_stats().budget_bytes == smallest


@each_bits
def test_optimizers_of_one_process_share_a_budget(cls: Any, tmp_path: Path) -> None:
    """With the same paging arguments; the frames of all of them together keep to it."""
    paging = _smallest(tmp_path, spare_pages=2)
    models_ = [random_params(SHAPES, seed=i) for i in range(3)]
    opts = [cls(params, **paging) for params in models_]
    for opt, params in zip(opts, models_, strict=True):
        train(opt, params, 2)
    assert sum(opt.memory_stats().resident_pages for opt in opts) * 64 * KIB <= paging["max_host_memory"]
    assert {opt.memory_stats().budget_bytes for opt in opts} == {paging["max_host_memory"]}


@each_bits
def test_pagers_keep_budgets_apart(cls: Any, tmp_path: Path) -> None:
    pagers = [Pager(page_size="64KiB", max_host_memory=n * MIB, spill_dir=tmp_path) for n in (1, 2)]
    for n, pager in enumerate(pagers, start=1):
        params = random_params(SHAPES)
        opt = cls(params, pager=pager)
        train(opt, params, 2)
        assert opt.memory_stats().budget_bytes == n * MIB


@each_bits
@pytest.mark.parametrize("budget", [0, None])
def test_an_unlimited_or_automatic_budget_keeps_small_state_resident(cls: Any, budget: int | None) -> None:
    """Both hold what this machine has room for; neither writes a byte."""
    params = random_params(SHAPES)
    opt = cls(params, max_host_memory=budget, page_size="64KiB")
    train(opt, params, 3)
    stats = opt.memory_stats()
    assert stats.resident_pages == stats.pages
    assert stats.disk_bytes == 0 or sum(opt.paging_stats().bytes_written.values()) == 0


@each_bits
def test_the_budget_holds_at_every_event(cls: Any, tmp_path: Path) -> None:
    """Construction, first step, steps, reads, state dict, load, copies: by count of frames."""
    params = random_params(SHAPES)
    paging = _smallest(tmp_path, spare_pages=1)
    opt = cls(params, **paging)

    def within(optimizer: Any) -> bool:
        stats = optimizer.memory_stats()
        return (
            stats.resident_pages * 64 * KIB <= paging["max_host_memory"]
            and stats.host_bytes - stats.disk_bytes <= paging["max_host_memory"]
        )

    assert within(opt)
    for step in range(3):
        train(opt, params, range(step, step + 1))
        assert within(opt)
    for p in params:
        opt.state[p]["exp_avg"].zero_()
        assert within(opt)
    state_dict = opt.state_dict()
    assert within(opt)
    opt.load_state_dict(state_dict)
    assert within(opt)
    train(opt, params, range(3, 4))
    assert within(opt)


_MEMORY = """
import gc, json, re, sys, threading
from pathlib import Path
import torch
from torch.nn import Parameter
import pagedopt

MIB = 1 << 20
torch.set_num_threads(1)

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

class Peak:
    '''The largest anonymous memory while a block runs, looked at every millisecond.'''
    def __init__(self, name):
        self.name = name
    def __enter__(self):
        self.peak, self.stop = anonymous_bytes(), threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
    def sample(self):
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, anonymous_bytes())
    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        report[self.name] = max(self.peak, anonymous_bytes()) - before

def model(num_params, num_rows):
    params = [Parameter(torch.ones(num_rows, 4096)) for _ in range(num_params)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params

def life(params):
    '''Every event in an optimizer's life.'''
    paging = {"page_size": "128KiB", "prefetch_depth": 1, "spill_dir": folder, "max_host_memory": 2 * MIB}
    with Peak("construction"):
        opt = cls(params, **paging)
    with Peak("first step"):
        opt.step()
    with Peak("step"):
        opt.step()
    report.update(state=opt.memory_stats().host_bytes, budget=opt.memory_stats().budget_bytes)
    with Peak("state dict"):
        state_dict = opt.state_dict()
    with Peak("save"):
        torch.save(state_dict, folder / "checkpoint.pt")
    del state_dict
    loaded = torch.load(folder / "checkpoint.pt", weights_only=True, mmap=True)
    with Peak("load"):
        opt.load_state_dict(loaded)
    with Peak("step after load"):
        opt.step()
    del loaded
    with Peak("delete"):
        del opt

report, before = {}, 0
folder, cls = Path(sys.argv[1]), getattr(pagedopt, sys.argv[2])
life(model(1, 640))  # what torch and Python load once and keep
params = model(int(sys.argv[3]), 1024)
gc.collect()
before = anonymous_bytes()
life(params)
report["left"] = anonymous_bytes() - before
print(json.dumps(report))
"""


@needs_proc
@pytest.mark.parametrize(("cls", "count"), [("PagedAdamW", 1), ("PagedAdamW8bit", 3)])
def test_memory_never_exceeds_the_budget(cls: str, count: int, tmp_path: Path) -> None:
    """The memory of the process, at construction, first step, step, state dict, save, load and after deletion.

    On top of the budget: what one page's update in plain torch needs for a moment, threads' stacks, the allocator.
    """
    report = report_of(_MEMORY, tmp_path, cls, count)
    state, budget, left = report.pop("state"), report.pop("budget"), report.pop("left")
    beside = 14 * MIB
    assert budget == 2 * MIB
    assert state >= 24 * MIB
    for name, used in report.items():
        assert used <= budget + beside, f"{name}: {used / MIB:.0f} MiB"
    assert left <= beside


@needs_proc
@each_bits
def test_the_spill_file_is_private_and_gone_at_close(cls: Any, tmp_path: Path) -> None:
    """One file a pager, readable by nobody else, its room taken at the first step, no name left behind."""
    params = random_params(SHAPES)
    opt = cls(params, **_smallest(tmp_path))
    train(opt, params, 1)
    assert len(set(open_files_in(tmp_path))) == 1
    modes = [fd.stat().st_mode & 0o077 for fd in Path("/proc/self/fd").iterdir() if _is_in(fd, tmp_path)]
    assert modes
    assert not any(modes)
    size = [fd.stat().st_size for fd in Path("/proc/self/fd").iterdir() if _is_in(fd, tmp_path)]
    train(opt, params, range(1, 3))
    assert [fd.stat().st_size for fd in Path("/proc/self/fd").iterdir() if _is_in(fd, tmp_path)] == size
    opt.close()
    gc.collect()
    assert not list(tmp_path.iterdir())


def _is_in(fd: Path, folder: Path) -> bool:
    return fd.is_symlink() and str(fd.readlink()).startswith(str(folder))


_KILLED = """
import os, signal, sys
from oracle import random_params, train
from pagedopt import PagedAdamW
params = random_params([(900, 257)])
opt = PagedAdamW(params, page_size="64KiB", max_host_memory=int(sys.argv[2]), prefetch_depth=1, spill_dir=sys.argv[1])
train(opt, params, 1)
print("alive", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="unlinked files are a thing of POSIX systems")
def test_a_killed_process_leaves_no_spill_file(tmp_path: Path) -> None:
    done = run_python(_KILLED, tmp_path, smallest_budget("64KiB", 1))
    assert "alive" in done.stdout
    assert done.returncode == -9
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_hold_the_state_fails_before_a_parameter_changes(tmp_path: Path) -> None:
    """Room is taken at the first step, not in the middle of one; the error says how much and where."""
    resource = pytest.importorskip("resource", reason="needs a system that can refuse room on demand")
    params = random_params(SHAPES)
    before = [p.detach().clone() for p in params]
    opt = PagedAdamW(params, **_smallest(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * KIB, hard))
    try:
        with pytest.raises(SpillError, match=str(tmp_path)):
            train(opt, params, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same_params(params, before)


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    params = random_params(SHAPES)
    before = [p.detach().clone() for p in params]
    missing = tmp_path / "nowhere"
    with pytest.raises((ValueError, OSError), match="nowhere"):
        train(PagedAdamW(params, **_smallest(missing)), params, 1)
    assert_same_params(params, before)


def test_a_folder_is_not_needed_when_nothing_spills(tmp_path: Path) -> None:
    params = random_params(SHAPES)
    train(AdamW8bit(params), params, 1)
    opt = PagedAdamW8bit(params, max_host_memory=0, spill_dir=tmp_path)
    train(opt, params, 2)
    assert not list(tmp_path.iterdir())
