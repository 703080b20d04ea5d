"""Ctrl-C in the middle of whatever an optimizer is at: what follows is right to the bit, or refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pagedopt
from interrupts import Interrupt
from oracle import assert_same_params, assert_same_state, give, random_grads, random_params, train, twins
from pagedopt import AdamW, PagedAdamW32bit, Pager, StateLostError
from residue import smallest_budget

SHAPES = [(300, 130), (7,), (100, 300)]
NUM_MOMENTS = 8

WAYS: dict[str, Callable[[Any, Any, Path], object]] = {
    "step": lambda opt, *_: opt.step(),
    "state_dict": lambda opt, *_: opt.state_dict(),
    "deepcopy": lambda opt, *_: copy.deepcopy(opt),
    "save": lambda opt, _, folder: pagedopt.save(opt, folder / "checkpoint"),
    "load": lambda opt, saved, _: opt.load_state_dict(saved),
    "read": lambda opt, *_: [opt.state[p]["exp_avg"] for p in opt.param_groups[0]["params"]],
    "flush": lambda opt, *_: opt.flush(),
    "fetch_ahead": lambda opt, *_: opt.fetch_ahead(),
}


def _options(folder: Path) -> dict[str, Any]:
    budget = smallest_budget("64KiB", 1)
    return {"pager": Pager(page_size="64KiB", prefetch_depth=1, max_host_memory=budget, spill_dir=folder)}


def _num_functions(way: str, folder: Path) -> int:
    """Return how many functions begin in the course of `way`."""
    params = random_params(SHAPES)
    opt = PagedAdamW32bit(params, **_options(folder))
    train(opt, params, 2)
    saved = opt.state_dict()
    counted = Interrupt(1 << 60, "optim", "paging", "tiers")
    with counted:
        WAYS[way](opt, saved, folder)
    return (1 << 60) - counted._left


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_anywhere_leaves_state_that_is_right_or_refused(way: str, tmp_path: Path) -> None:
    """At eight moments of each: parameters and state are a resident twin's after some steps more."""
    rng = random.Random(way)
    interrupted = 0
    for nth in sorted(rng.sample(range(_num_functions(way, tmp_path)), NUM_MOMENTS)):
        ours, theirs = twins(random_params(SHAPES))
        opt, plain = PagedAdamW32bit(ours, **_options(tmp_path)), AdamW(theirs)
        train(opt, ours, 2)
        train(plain, theirs, 2)
        saved, before = plain.state_dict(), twins(theirs, 1)[0]
        held = [opt.state[p]["exp_avg_sq"] for p in ours]
        for params in (ours, theirs):
            give(params, random_grads(params, seed=5))
        with Interrupt(nth, "optim", "paging", "tiers") as interrupt:
            WAYS[way](opt, saved, tmp_path)
        interrupted += interrupt.where is not None  # how much there is to wait for, and so to call, is up to the disk
        if any(not torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)):
            plain.step()
        try:
            train(opt, ours, range(2, 4))
        except StateLostError:
            for params, optimizer in ((ours, opt), (theirs, plain)):
                for p, q in zip(params, before, strict=True):
                    p.data.copy_(q)
                optimizer.load_state_dict(saved)
            train(opt, ours, range(2, 4))
        train(plain, theirs, range(2, 4))
        assert_same_params(ours, theirs)
        assert_same_state(opt.state_dict(), plain.state_dict())
        memory = opt.pager.on(torch.device("cpu")).memory
        assert memory.budget_nbytes is not None
        assert memory.frame_nbytes <= memory.budget_nbytes
        del held
        opt.close()
        assert opt.pager.on(torch.device("cpu")).memory == memory.__class__(budget_nbytes=memory.budget_nbytes)
    assert interrupted >= NUM_MOMENTS // 2
