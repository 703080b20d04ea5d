"""`optimizer.state` as people and frameworks use it: laws C1 to C7 of the compatibility list."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import weakref
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from child import report_of
from oracle import assert_same_params, assert_same_state, give, random_grads, random_params, train, twins
from pagedopt import AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit
from residue import needs_proc, open_files_in, smallest_budget, tight_paging, wait_for_threads

pytestmark = pytest.mark.framework("torch.optim", "`optimizer.state`, read, edited, assigned, cleared and dropped")

# Several pages; part of a page in 8 bits; narrow rows in 8 bits; 32 bits whatever the class.
SHAPES = [(300, 257), (4, 1030), (300, 20), (7,)]
KEYS_32 = {"step", "exp_avg", "exp_avg_sq"}
KEYS_8 = KEYS_32 | {"exp_avg_absmax", "exp_avg_sq_absmax"}

each_class = pytest.mark.parametrize("cls", [AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)
paged_class = pytest.mark.parametrize("cls", [PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)


def _options(cls: Any) -> dict[str, Any]:
    """Paged classes get the smallest budget, so that their state is read from and written to the disk."""
    return tight_paging(cls) if cls.__name__.startswith("Paged") else {}


# C1: state as a whole.


@each_class
def test_state_is_falsy_before_the_first_step_and_truthy_after(cls: Any) -> None:
    """C1: `if optimizer.state:` is how torch.distributed asks whether there is any."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    assert not opt.state
    assert len(opt.state) == 0
    train(opt, params, 1)
    assert opt.state
    assert len(opt.state) == len(params)
    assert set(opt.state) == set(params)


def _clear(opt: torch.optim.Optimizer) -> None:
    opt.state.clear()


def _assign(opt: torch.optim.Optimizer) -> None:
    opt.state = defaultdict(dict)


@each_class
@pytest.mark.parametrize("start_over", [_clear, _assign])
def test_clearing_state_starts_over(cls: Any, start_over: Any) -> None:
    """C1: pages are freed, and what follows is what a new optimizer would do."""
    ours = random_params(SHAPES)
    opt = cls(ours, **_options(cls))
    train(opt, ours, 3)
    start_over(opt)
    assert not opt.state
    assert opt.memory_stats().pages == 0
    theirs = twins(ours, 1)[0]
    fresh = cls(theirs)
    train(opt, ours, range(3, 6))
    train(fresh, theirs, range(3, 6))
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), fresh.state_dict())


@each_class
def test_state_that_is_put_aside_can_be_brought_back(cls: Any) -> None:
    """C1: who keeps `optimizer.state`, gives the optimizer another one and the first again later, goes on as before."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    for optimizer, params in ((opt, ours), (plain, theirs)):
        train(optimizer, params, 3)
    aside, opt.state = opt.state, defaultdict(dict)
    assert not opt.state
    assert opt.memory_stats().pages == 0
    others = random_params(SHAPES)
    give(ours, [None] * len(ours))
    opt.param_groups[0]["params"] = others
    train(opt, others, 1)
    opt.param_groups[0]["params"] = ours
    opt.state = aside
    for optimizer, params in ((opt, ours), (plain, theirs)):
        train(optimizer, params, range(3, 5))
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())


# C2: the entry of one parameter.


@each_class
def test_an_entry_is_a_dict_of_tensors(cls: Any) -> None:
    """C2: `items`, `values`, `get`, `dict(...)` and `{**...}` give tensors, the same live and saved."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    train(opt, params, 2)
    saved = opt.state_dict()["state"]
    for index, p in enumerate(params):
        entry = opt.state[p]
        is_8bit = "8bit" in cls.__name__ and p.numel() >= 4096
        assert isinstance(entry, dict)
        assert set(entry) == (KEYS_8 if is_8bit else KEYS_32)
        assert set(entry) == set(saved[index])
        views = [dict(entry.items()), dict(entry), {**entry}, {k: entry.get(k) for k in entry}, entry.copy()]
        for view in views:
            for key, value in view.items():
                assert isinstance(value, Tensor)
                assert torch.equal(value, saved[index][key]), key
        assert all(isinstance(v, Tensor) for v in entry.values())
        assert "exp_avg" in entry
        assert "state1" not in entry
        assert entry.get("state1") is None
        assert len(entry) == len(saved[index])
        with pytest.raises(KeyError):
            entry["state1"]


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_amsgrad_adds_its_key_and_clipping_adds_its_history(cls: Any) -> None:
    """C2: and no others."""
    params = random_params(SHAPES)
    opt = cls(params, amsgrad=True, **_options(cls))
    train(opt, params, 1)
    assert all(set(opt.state[p]) == KEYS_32 | {"max_exp_avg_sq"} for p in params)
    opt = cls(params, percentile_clipping=5, **_options(cls))
    train(opt, params, 1)
    assert all(set(opt.state[p]) == KEYS_32 | {"gnorm_history"} for p in params)
    assert opt.state[params[0]]["gnorm_history"].shape == (100,)
    assert opt.state[params[0]]["gnorm_history"].dtype == torch.float32


@each_class
def test_state_tensors_have_the_documented_shapes_and_dtypes(cls: Any) -> None:
    """C2: moments have the parameter's shape; absmax is (rows, blocks per row), one row where rows are narrow."""
    params = random_params(SHAPES, torch.bfloat16)
    opt = cls(params, **_options(cls))
    train(opt, params, 1)
    absmax_shapes = [(300, 2), (4, 5), (1, 24)]
    for i, p in enumerate(params):
        entry = opt.state[p]
        is_8bit = "8bit" in cls.__name__ and i < 3
        assert all(v.device.type == "cpu" for v in entry.values())
        assert entry["exp_avg"].shape == entry["exp_avg_sq"].shape == p.shape
        assert entry["exp_avg"].dtype == (torch.int8 if is_8bit else torch.float32)
        assert entry["exp_avg_sq"].dtype == (torch.uint8 if is_8bit else torch.float32)
        if is_8bit:
            for key in ("exp_avg_absmax", "exp_avg_sq_absmax"):
                assert entry[key].shape == absmax_shapes[i]
                assert entry[key].dtype == torch.float32


@pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit], ids=lambda c: c.__name__)
def test_tensor_wise_state_has_one_absmax(cls: Any) -> None:
    """C2: (1, 1), however many pages the parameter is in."""
    params = random_params(SHAPES[:3])
    opt = cls(params, block_wise=False, **_options(cls))
    train(opt, params, 2)
    for p in params:
        assert opt.state[p]["exp_avg_absmax"].shape == (1, 1)
        assert opt.state[p]["exp_avg_sq_absmax"].shape == (1, 1)


@each_class
def test_a_parameter_without_state_has_an_empty_entry(cls: Any) -> None:
    """C2: `state = opt.state[p]; if len(state) == 0:` is how every optimizer of torch asks."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    give(params, [None, *random_grads(params, seed=0)[1:]])
    opt.step()
    assert params[0] not in opt.state
    assert opt.state.get(params[0]) is None
    assert set(opt.state_dict()["state"]) == {1, 2, 3}
    assert len(opt.state[params[0]]) == 0
    train(opt, params, range(1, 2))
    assert int(opt.state[params[0]]["step"]) == 1
    assert int(opt.state[params[1]]["step"]) == 2


# C3, C4, C5: writing.


def _edit_in_place(entry: Any) -> None:
    entry["exp_avg"].zero_()
    entry["step"].fill_(7)


def _edit_by_assignment(entry: Any) -> None:
    entry["exp_avg"] = torch.zeros_like(entry["exp_avg"])
    entry["step"] = torch.tensor(7.0)


@each_class
@pytest.mark.parametrize("edit", [_edit_in_place, _edit_by_assignment])
def test_an_edit_of_what_was_read_persists(cls: Any, edit: Any) -> None:
    """C3, C4: restarts that zero a moment do what they say, also on a parameter of many pages that are on disk."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    for optimizer, params in ((opt, ours), (plain, theirs)):
        train(optimizer, params, 2)
    for p in ours:
        edit(opt.state[p])
    for p in ours:
        assert not opt.state[p]["exp_avg"].any()
        assert opt.state[p]["exp_avg_sq"].any()
        assert float(opt.state[p]["step"]) == 7.0
    saved = plain.state_dict()
    for entry in saved["state"].values():
        entry["exp_avg"].zero_()
        entry["step"].fill_(7)
    plain.load_state_dict(saved)
    train(opt, ours, range(2, 4))
    train(plain, theirs, range(2, 4))
    assert_same_params(ours, theirs)


@each_class
def test_an_edit_through_a_tensor_that_is_held_reaches_the_next_step(cls: Any) -> None:
    """C3: somebody who holds what was read, edits it and steps at once."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    train(opt, ours, 1)
    train(plain, theirs, 1)
    held = [opt.state[p]["exp_avg"] for p in ours]
    for tensor in held:
        tensor.zero_()
    for p in theirs:
        plain.state[p]["exp_avg"] = torch.zeros_like(plain.state[p]["exp_avg"])
    train(opt, ours, range(1, 3))
    train(plain, theirs, range(1, 3))
    assert_same_params(ours, theirs)


_VIEWS = {
    "detached": lambda tensor: tensor.detach(),
    "data": lambda tensor: tensor.data,
    "view": lambda tensor: tensor.view(-1),
    "numpy": lambda tensor: torch.from_numpy(tensor.numpy()),
}


@each_class
@pytest.mark.parametrize("kind", _VIEWS)
def test_an_edit_through_whatever_shows_what_was_read_persists(cls: Any, kind: str) -> None:
    """C3: also steps after the tensor itself was dropped, and what is held is up to date by then."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    train(opt, params, 1)
    held = [_VIEWS[kind](opt.state[p]["exp_avg"]) for p in params]
    train(opt, params, range(1, 3))
    for p, shown in zip(params, held, strict=True):
        assert torch.equal(shown.reshape(-1), opt.state[p]["exp_avg"].reshape(-1))
        shown.zero_()
    assert not any(entry["exp_avg"].any() for entry in opt.state_dict()["state"].values())


@each_class
def test_reading_never_changes_state(cls: Any) -> None:
    """C3: what is read and dropped, or read and held through a step, writes nothing back."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    held = []
    for step in range(3):
        train(opt, ours, range(step, step + 1))
        train(plain, theirs, range(step, step + 1))
        held += [tensor for p in ours for tensor in opt.state[p].values()]
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())


@each_class
def test_what_is_assigned_is_copied(cls: Any) -> None:
    """C4: the tensor that was assigned stays the caller's own."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    train(opt, params, 1)
    mine = torch.ones_like(opt.state[params[0]]["exp_avg"])
    opt.state[params[0]]["exp_avg"] = mine
    pages = opt.memory_stats().pages
    mine.zero_()
    assert bool((opt.state[params[0]]["exp_avg"] == 1).all())
    assert opt.memory_stats().pages == pages


@each_class
def test_a_tensor_of_another_shape_cannot_be_assigned(cls: Any) -> None:
    """C4: and what was there stays."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    train(opt, params, 1)
    before = opt.state[params[0]]["exp_avg"].clone()
    with pytest.raises(ValueError, match="exp_avg"):
        opt.state[params[0]]["exp_avg"] = torch.zeros(3)
    assert torch.equal(opt.state[params[0]]["exp_avg"], before)


def _give_up_one(opt: torch.optim.Optimizer, param: Tensor) -> None:
    del opt.state[param]


def _give_up_all(opt: torch.optim.Optimizer, _: Tensor) -> None:
    opt.state.clear()


def _replace(opt: torch.optim.Optimizer, param: Tensor) -> None:
    opt.state[param] = {key: torch.zeros_like(value) for key, value in opt.state[param].items()}


@each_class
@pytest.mark.parametrize("give_up", [_give_up_one, _give_up_all, _replace])
def test_an_entry_that_is_held_outlives_its_state(cls: Any, give_up: Any) -> None:
    """C5: people take an entry, drop the parameter's state, train on, and put the entry back."""
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls))
    train(opt, params, 3)
    before = opt.state_dict()["state"][0]
    entry, tensors = opt.state[params[0]], dict(opt.state[params[0]])
    give_up(opt, params[0])
    train(opt, params, 1)
    assert float(opt.state[params[0]]["step"]) == 1
    for held in (entry, tensors):
        assert all(torch.equal(held[key], value) for key, value in before.items())
    opt.state[params[0]] = entry
    after = opt.state_dict()["state"][0]
    assert all(torch.equal(after[key], value) for key, value in before.items())


@each_class
def test_a_device_mover_leaves_state_paged_and_training_unchanged(cls: Any) -> None:
    """C2, C4: Lightning rebuilds every entry as its own type over an OrderedDict and assigns it while it iterates."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    before = opt.memory_stats()
    for p, entry in opt.state.items():
        opt.state[p] = type(entry)(OrderedDict((k, v.to("cpu", copy=True)) for k, v in entry.items()))
    train(opt, ours, range(2, 4))
    train(plain, theirs, range(2, 4))
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())
    after = opt.memory_stats()
    assert (after.pages, after.budget_bytes) == (before.pages, before.budget_bytes)
    if cls.__name__.startswith("Paged"):
        assert after.resident_pages * 65_536 <= after.budget_bytes


@each_class
def test_a_loop_that_moves_every_state_tensor_changes_nothing(cls: Any) -> None:
    """C4: `state[k] = v.to(device)` over every tensor is what people do after a resume."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    for state in opt.state.values():
        for k, v in state.items():
            if isinstance(v, Tensor):
                state[k] = v.to("cpu")
    train(opt, ours, range(2, 4))
    train(plain, theirs, range(2, 4))
    assert_same_params(ours, theirs)


@pytest.mark.parametrize("names", ["torch", "bitsandbytes"])
@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_a_foreign_dict_is_taken_in_at_the_next_step(cls: Any, names: str) -> None:
    """C5: another library's entry assigned to `state[p]` is the state that training goes on from."""
    ours, theirs = twins(random_params(SHAPES))
    peer = torch.optim.AdamW(theirs, foreach=False)
    train(peer, theirs, 3)
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q)
    opt = cls(ours, **_options(cls))
    for p, q in zip(ours, theirs, strict=True):
        entry = {k: v.clone() for k, v in peer.state[q].items()}
        if names == "bitsandbytes":
            entry = {"step": 3, "state1": entry["exp_avg"], "state2": entry["exp_avg_sq"]}
        opt.state[p] = entry
    train(opt, ours, range(3, 6))
    train(peer, theirs, range(3, 6))
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)
        assert set(opt.state[p]) == KEYS_32
        assert int(opt.state[p]["step"]) == 6


def test_a_foreign_dict_that_makes_no_sense_is_refused() -> None:
    """C5: naming what is wrong, with no parameter changed."""
    params = random_params(SHAPES)
    before = [p.detach().clone() for p in params]
    opt = PagedAdamW(params, **tight_paging(PagedAdamW))
    with pytest.raises(ValueError, match="momentum_buffer"):  # noqa: PT012 - assignment or the next step may refuse
        opt.state[params[0]] = {"momentum_buffer": torch.zeros_like(params[0])}
        train(opt, params, 1)
    assert_same_params(params, before)


# C6: the step counter.


@each_class
def test_step_is_a_scalar_float32_tensor(cls: Any) -> None:
    """C6: 0-d, float32, on the CPU, live and saved, whatever the parameter's dtype."""
    params = random_params(SHAPES, torch.bfloat16)
    opt = cls(params, **_options(cls))
    train(opt, params, 3)
    for step in (opt.state[params[0]]["step"], opt.state_dict()["state"][0]["step"]):
        assert (step.shape, step.dtype, step.device.type, float(step)) == ((), torch.float32, "cpu", 3.0)


# C7: the end.


@needs_proc
@paged_class
def test_deleting_the_optimizer_frees_everything_at_once(cls: Any, tmp_path: Path) -> None:
    """C7: files, threads and the object itself, without the garbage collector."""
    params = random_params(SHAPES)
    threads = threading.active_count()
    gc.collect()
    gc.disable()
    try:
        opt = cls(params, **_options(cls), spill_dir=tmp_path)
        train(opt, params, 2)
        scheduler_free = weakref.ref(opt)
        state = opt.state
        assert len(state) == len(params)
        assert open_files_in(tmp_path)
        del opt, state
        assert scheduler_free() is None
        assert not open_files_in(tmp_path)
        assert not list(tmp_path.iterdir())
        assert wait_for_threads(threads) == threads
    finally:
        gc.enable()


@needs_proc
@paged_class
def test_the_last_of_those_that_share_frees(cls: Any, tmp_path: Path) -> None:
    """C7: one optimizer of a shared pager goes; the other trains on, and only its end closes the file."""
    ours, others, theirs = twins(random_params(SHAPES), 3)
    first = cls(ours, **_options(cls), spill_dir=tmp_path)
    second = cls(others, **_options(cls), spill_dir=tmp_path)
    plain = cls(theirs)
    train(first, ours, 2)
    train(second, others, 2)
    del first
    train(second, others, range(2, 4))
    train(plain, theirs, 4)
    assert_same_params(others, theirs)
    assert open_files_in(tmp_path)
    del second
    assert not open_files_in(tmp_path)


def _drop(held: list[Any], answer: Any) -> None:
    held.clear()
    gc.collect()
    answer.put("gone")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@paged_class
def test_a_forked_worker_that_drops_its_copy_takes_nothing_from_its_parent(cls: Any, tmp_path: Path) -> None:
    """C7: a DataLoader worker inherits the optimizer, drops it, and ends without a hang; the parent trains on."""
    ours, theirs = twins(random_params(SHAPES))
    held = [cls(ours, **_options(cls), spill_dir=tmp_path)]
    train(held[0], ours, 2)
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    worker = context.Process(target=_drop, args=(held, answer))
    worker.start()
    worker.join(timeout=240)
    assert worker.exitcode == 0
    train(held[0], ours, range(2, 4))
    train(cls(theirs), theirs, 4)
    assert_same_params(ours, theirs)


_FORK_AND_EXIT = """
import json, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch
from oracle import random_params, train
from pagedopt import PagedAdamW8bit
params = random_params([(300, 257)])
budget = int(sys.argv[2])
opt = PagedAdamW8bit(params, page_size="64KiB", max_host_memory=budget, prefetch_depth=0, spill_dir=sys.argv[1])
train(opt, params, 2)
pid = os.fork()
if pid == 0:
    sys.exit(3)  # an ordinary exit: every handler that was registered in the parent runs in the child
_, status = os.waitpid(pid, 0)
train(opt, params, range(2, 4))
print(json.dumps({"child": os.waitstatus_to_exitcode(status), "sum": float(params[0].detach().double().sum())}))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_the_ordinary_exit_of_a_forked_child_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    """C7: exit handlers that run in the child neither hang nor remove what is the parent's."""
    report = report_of(_FORK_AND_EXIT, tmp_path, smallest_budget("64KiB", 0))
    assert report["child"] == 3
    params = random_params([(300, 257)])
    train(PagedAdamW8bit(params), params, 4)
    assert report["sum"] == float(params[0].detach().double().sum())
    assert not list(tmp_path.iterdir())
