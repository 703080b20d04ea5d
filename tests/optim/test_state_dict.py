"""State dicts are by parameter, never by page: exact round trips over pages, budgets and files."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import assert_same_params, assert_same_state, codebook, random_params, row_blocks, train, twins
from pagedopt import AdamW, AdamW8bit, CheckpointError, PagedAdamW, PagedAdamW8bit, Pager, StateLostError
from residue import smallest_budget
from strategies import STATE_KINDS, Machine, courses, machines, models

SHAPES = [(900, 257), (4, 1030), (300, 20), (7,), ()]

each_kind = pytest.mark.parametrize("kind", STATE_KINDS)


def _paging(machine: Machine, folder: Path | str) -> dict[str, Any]:
    smallest = smallest_budget(machine.page_size, machine.prefetch_depth)
    return {
        "page_size": machine.page_size,
        "prefetch_depth": machine.prefetch_depth,
        "max_host_memory": smallest + machine.spare_pages * 128 * 1024,
        "spill_dir": folder,
    }


@each_kind
def test_the_shapes_of_state_are_those_of_parameters_whatever_the_pages(kind: str, tmp_path: Path) -> None:
    """Keys, shapes, dtypes and bits are the same in pages of 64 KiB, of 1 MiB, and unpaged."""
    dicts = []
    for page_size in ("64KiB", "1MiB", None):
        params = random_params(SHAPES)
        options: dict[str, Any] = {"page_size": page_size, "spill_dir": tmp_path} if page_size else {}
        opt = (PagedAdamW if page_size else AdamW)(params, **STATE_KINDS[kind], **options)
        train(opt, params, 2)
        dicts.append(opt.state_dict())
        for index, p in enumerate(params):
            entry = dicts[-1]["state"][index]
            assert entry["exp_avg"].shape == entry["exp_avg_sq"].shape == p.shape
    assert_same_state(dicts[0], dicts[1])
    assert_same_state(dicts[0], dicts[2])


@each_kind
def test_a_state_dict_loads_into_what_it_came_from(kind: str, tmp_path: Path) -> None:
    """state_dict, torch.save, torch.load(weights_only=True), load_state_dict, state_dict: not a bit differs."""
    params = random_params(SHAPES)
    opt = PagedAdamW(params, **STATE_KINDS[kind], **_paging(Machine("64KiB", 1, 0), tmp_path))
    train(opt, params, 3)
    saved = opt.state_dict()
    torch.save(saved, tmp_path / "optimizer.pt")
    fresh = AdamW(random_params(SHAPES), **STATE_KINDS[kind])
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert_same_state(fresh.state_dict(), saved)
    opt.load_state_dict(fresh.state_dict())
    assert_same_state(opt.state_dict(), saved)


@each_kind
@settings(max_examples=8)
@given(data=st.data())
def test_resuming_with_other_pages_and_budget_is_bit_exact(kind: str, data: st.DataObject) -> None:
    """Saved on one machine in the middle of any course, resumed on another: the bits of a run that was never cut."""
    model = data.draw(models())
    course = data.draw(courses(model))
    cut = data.draw(st.integers(0, course.num_steps))
    straight, before = model.params(), model.params()
    with tempfile.TemporaryDirectory() as folder:
        whole = AdamW(model.groups(straight), **STATE_KINDS[kind])
        train(whole, straight, course.num_steps, gradients=lambda step: course.gradients(straight, step))
        first = PagedAdamW(model.groups(before), **STATE_KINDS[kind], **_paging(data.draw(machines()), folder))
        train(first, before, cut, gradients=lambda step: course.gradients(before, step))
        after = twins(before, 1)[0]
        second = PagedAdamW(model.groups(after), **STATE_KINDS[kind], **_paging(data.draw(machines()), folder))
        second.load_state_dict(first.state_dict())
        train(second, after, range(cut, course.num_steps), gradients=lambda step: course.gradients(after, step))
        assert_same_params(after, straight)
        assert_same_state(second.state_dict(), whole.state_dict())
        first.close()
        second.close()


@pytest.mark.parametrize("block_wise", [False, True])
@pytest.mark.parametrize("shape", [(), (7,), (33, 3), (1, 200), (256,)])
def test_8_bit_state_of_one_block_resumes_to_the_bit(shape: tuple[int, ...], block_wise: bool) -> None:
    """Where one absmax is for the block and for the tensor, it is taken as it is, whichever it is called."""
    params = random_params([shape])
    opt = PagedAdamW8bit(params, block_wise=block_wise, min_8bit_size=0)
    train(opt, params, 3, gradients=lambda _: [-torch.rand(shape)])  # the largest |exp_avg| is negative: no code is -1
    for resumes_block_wise in (False, True):
        resumed = PagedAdamW8bit(twins(params, 1)[0], block_wise=resumes_block_wise, min_8bit_size=0)
        resumed.load_state_dict(opt.state_dict())
        assert_same_state({**resumed.state_dict(), "param_groups": []}, {**opt.state_dict(), "param_groups": []})


def test_8_bit_state_says_how_to_decode_it() -> None:
    """Codes decode with the published codebook and the absmax beside them: a reader needs nothing else.

    The signed code is the position in the sorted codebook less 127, as one byte; the unsigned one the position, of the
    square root.
    """
    params = random_params([(20, 300)])
    opt = AdamW8bit(params, betas=(0.9, 0.99))
    exact = AdamW(copy.deepcopy(params), betas=(0.9, 0.99))
    train(opt, params, 1)
    train(exact, exact.param_groups[0]["params"], 1)
    entry, truth = opt.state_dict()["state"][0], exact.state_dict()["state"][0]
    blocks = row_blocks((20, 300)).view(20, 300)
    m = codebook(signed=True)[(entry["exp_avg"].long() + 127) % 256] * entry["exp_avg_absmax"].flatten()[blocks]
    root_v = codebook(signed=False)[entry["exp_avg_sq"].long()] * entry["exp_avg_sq_absmax"].flatten()[blocks]
    for decoded, wanted in ((m, truth["exp_avg"]), (root_v, truth["exp_avg_sq"].sqrt())):
        absmax = torch.zeros(40, dtype=torch.float64).scatter_reduce(
            0, blocks.flatten(), wanted.double().abs().flatten(), "amax"
        )
        half_of_the_widest_gap = 0.0105
        assert bool(((decoded - wanted).abs() <= half_of_the_widest_gap * absmax[blocks]).all())


@pytest.mark.parametrize("cls", [PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)
def test_state_grows_with_values_and_not_with_pages(cls: Any) -> None:
    """A state dict of 32 bits is 8 bytes a value, of 8 bits 2 bytes and an absmax for each block of a row."""
    params = random_params([(900, 512)])
    opt = cls(params)
    train(opt, params, 1)
    entry = opt.state_dict()["state"][0]
    nbytes = sum(v.numel() * v.element_size() for k, v in entry.items() if k != "step")
    numel, blocks = 900 * 512, 900 * 2
    assert nbytes == (8 * numel if cls is PagedAdamW else 2 * numel + 2 * 4 * blocks)


def _without(key: str) -> Any:
    def change(saved: dict[str, Any]) -> None:
        del saved["state"][1][key]

    return change


def _reshaped(key: str) -> Any:
    def change(saved: dict[str, Any]) -> None:
        saved["state"][1][key] = saved["state"][1][key].flatten()[:-1].clone()

    return change


def _of_another_dtype(key: str) -> Any:
    def change(saved: dict[str, Any]) -> None:
        saved["state"][1][key] = saved["state"][1][key].to(torch.complex64)

    return change


def _of_an_unknown_codec(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["state_codec"] = "dynamic8/999"


WRONG = {
    "no exp_avg": _without("exp_avg"),
    "no absmax": _without("exp_avg_absmax"),
    "no step": _without("step"),
    "short exp_avg_sq": _reshaped("exp_avg_sq"),
    "short absmax": _reshaped("exp_avg_sq_absmax"),
    "complex exp_avg": _of_another_dtype("exp_avg"),
    "unknown codec": _of_an_unknown_codec,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit], ids=lambda c: c.__name__)
def test_a_state_dict_that_cannot_be_taken_in_is_refused_and_nothing_changes(cls: Any, wrong: str) -> None:
    """A `CheckpointError`, which is a `ValueError`, that says what is wrong; training goes on as if not tried."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        entry["step"].fill_(50)
    WRONG[wrong](saved)
    word = {"no absmax": "exp_avg", "unknown codec": "dynamic8/999"}.get(wrong, wrong.split()[-1])
    with pytest.raises(CheckpointError, match=word):
        opt.load_state_dict(saved)
    assert_same_state(opt.state_dict(), plain.state_dict())
    train(opt, ours, range(2, 4))
    train(plain, theirs, range(2, 4))
    assert_same_params(ours, theirs)


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_a_load_that_is_refused_keeps_what_the_saved_groups_have_no_room_for(cls: Any) -> None:
    """The largest second moments of amsgrad are not dropped on behalf of groups without it, which then do not come."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, amsgrad=True), cls(theirs, amsgrad=True)
    other_params = random_params([*SHAPES[:-1], (3,)])
    other = cls(other_params)
    for optimizer, params, steps in ((opt, ours, 3), (plain, theirs, 3), (other, other_params, 1)):
        train(optimizer, params, steps)
    with pytest.raises(CheckpointError, match="exp_avg"):
        opt.load_state_dict(other.state_dict())
    assert_same_state(opt.state_dict(), plain.state_dict())


@pytest.mark.parametrize("is_lost_page", [False, True], ids=["half a step", "a lost page"])
def test_lost_state_is_reloaded_whatever_the_saved_groups_say(is_lost_page: bool) -> None:
    """What is lost cannot be read, so it cannot be converted to the format of what comes in its place."""
    ours, theirs = twins(random_params(SHAPES))
    opt, saved = PagedAdamW(ours, amsgrad=True, pager=Pager()), PagedAdamW(theirs)
    train(opt, ours, 1)
    train(saved, theirs, 2)
    if is_lost_page:
        pager = opt.pager.on(torch.device("cpu"))
        pager.fail(0, RuntimeError("the disk is gone"))
    else:
        opt._store.lose(StateLostError("half a step"))
    with pytest.raises(StateLostError):
        train(opt, ours, 1)
    opt.load_state_dict(saved.state_dict())
    assert_same_state(opt.state_dict(), saved.state_dict())


def test_the_state_of_torch_goes_on_here() -> None:
    """A run that began with `torch.optim.AdamW` continues within float32 rounding."""
    ours, theirs = twins(random_params(SHAPES))
    peer = torch.optim.AdamW(theirs, foreach=False)
    train(peer, theirs, 3)
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q)
    opt = PagedAdamW(ours)
    opt.load_state_dict(peer.state_dict())
    train(opt, ours, range(3, 6))
    train(peer, theirs, range(3, 6))
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)


def test_empty_state_loads_as_none() -> None:
    """Loading a state dict without state into an optimizer that has some leaves it with none."""
    params = random_params(SHAPES)
    opt = PagedAdamW(params)
    empty = opt.state_dict()
    train(opt, params, 2)
    opt.load_state_dict(empty)
    assert not opt.state
    assert opt.memory_stats().pages == 0


def test_parameters_without_state_have_none_after_a_load() -> None:
    """The entries of a state dict are those that are there afterwards, no more and no fewer."""
    ours, theirs = twins(random_params(SHAPES))
    opt, other = PagedAdamW(ours), PagedAdamW(theirs)
    train(opt, ours, 1, gradients=lambda _: [torch.ones_like(ours[0]), *[None] * (len(ours) - 1)])
    train(other, theirs, 2)
    other.load_state_dict(opt.state_dict())
    assert set(other.state) == {theirs[0]}
    assert math.isclose(float(other.state[theirs[0]]["step"]), 1.0)
