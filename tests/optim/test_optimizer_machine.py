"""A paged optimizer beside a resident one, in every order of what people do to optimizers that Hypothesis can think of.

After every command both have the same bits, and the budget holds. A command that is refused changes nothing.
"""

from __future__ import annotations

import copy
import errno
import itertools
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from torch.nn import Parameter

import pagedopt
from pagedopt import AdamW, CheckpointError, GlobalOptimManager, PagedAdamW, Pager, SpillError, StateLostError
from residue import smallest_budget
from states import bytes_in
from strategies import DTYPES

SHAPES = ((), (0,), (1,), (7,), (33, 3), (4, 300), (64, 64), (4097,), (120, 257), (30_000,))
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"amsgrad": True},
    {"percentile_clipping": 30},
    {"optim_bits": 8},
    {"optim_bits": 8, "min_8bit_size": 0},
    {"optim_bits": 8, "block_wise": False, "percentile_clipping": 50},
)
CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 0.0},
    {"lr": 0.1},
    {"betas": (0.0, 0.0)},
    {"betas": (0.5, 0.99)},
    {"eps": 0.0},
    {"weight_decay": 3.0},
    {"maximize": True},
    {"min_8bit_size": 300},
    {"optim_bits": 32},
    {"block_wise": False},
    {"percentile_clipping": 20},
)
PAGE_SIZES = ("64KiB", "128KiB")

seeds = st.integers(0, 1 << 20)
shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from(DTYPES)


class OptimizerMachine(RuleBasedStateMachine):
    """`pairs`: each parameter and its twin; `paged` and `plain`: their optimizers."""

    @initialize(
        kind=st.sampled_from(KINDS),
        first=st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=5),
        page_size=st.sampled_from(PAGE_SIZES),
        depth=st.integers(0, 2),
        seed=seeds,
    )
    def set_up(self, kind: dict[str, Any], first: list[Any], page_size: str, depth: int, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.kind = kind
        ours = [_parameter(shape, dtype, seed) for shape, dtype in first]
        self.plain = AdamW([Parameter(p.detach().clone()) for p in ours], **kind)
        self.paged = PagedAdamW(ours, **kind, pager=self.new_pager(page_size, depth))
        self.held: list[tuple[Tensor, Tensor]] = []

    def new_pager(self, page_size: str, depth: int) -> Pager:
        budget = smallest_budget(page_size, depth)
        return Pager(page_size=page_size, prefetch_depth=depth, max_host_memory=budget, spill_dir=self.folder)

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(_params(self.paged), _params(self.plain), strict=True))

    def pair(self, seed: int) -> tuple[Tensor, Tensor]:
        return self.pairs[seed % len(self.pairs)]

    # -- training

    @rule(seed=seeds, scale=st.sampled_from((0.0, 1e-30, 1.0, 1e30)), spoil=st.sampled_from((None, "nan", "inf")))
    def step(self, seed: int, scale: float, spoil: str | None) -> None:
        self.give_gradients(seed, scale, spoil)
        for optimizer in (self.paged, self.plain):
            optimizer.step()

    @rule(seed=seeds)
    def step_in_a_thread_with_a_closure(self, seed: int) -> None:
        for optimizer in (self.paged, self.plain):
            optimizer.zero_grad()

        def closure() -> float:
            self.give_gradients(seed, 1.0, None)
            return 1.0

        thread = threading.Thread(target=lambda: self.paged.step(closure))
        thread.start()
        thread.join()
        self.plain.step(closure)

    @rule(seed=seeds)
    def step_one_parameter(self, seed: int) -> None:
        for optimizer, param in zip((self.paged, self.plain), self.pair(seed), strict=True):
            optimizer.step_param(param, _gradient(param, seed, 1.0).to(DTYPES[seed % 3]))

    def give_gradients(self, seed: int, scale: float, spoil: str | None) -> None:
        """Give most parameters a gradient: half of the matrices' are not flat in memory."""
        for index, pair in enumerate(self.pairs):
            for param in pair:
                grad = _gradient(param, seed + index, scale)
                if spoil and grad.numel() and index % 2:
                    grad.view(-1)[seed % grad.numel()] = float(spoil)
                if (seed + index) % 2 and grad.dim() == 2:
                    grad = grad.t().contiguous().t()
                param.grad = None if (seed + index) % 5 == 0 else grad

    # -- groups

    @rule(change=st.sampled_from(CHANGES), seed=seeds)
    def change_a_group(self, change: dict[str, Any], seed: int) -> None:
        for optimizer in (self.paged, self.plain):
            optimizer.param_groups[seed % len(optimizer.param_groups)].update(change)

    @rule(shape=shapes, dtype=dtypes, seed=seeds, kind=st.sampled_from(KINDS))
    def add_a_group(self, shape: tuple[int, ...], dtype: torch.dtype, seed: int, kind: dict[str, Any]) -> None:
        if len(self.pairs) > 8:
            return
        options = {"amsgrad": False, "optim_bits": 32, **kind}
        for optimizer in (self.paged, self.plain):
            optimizer.add_param_group({"params": [_parameter(shape, dtype, seed)], **options})

    @rule(seed=seeds, bits=st.sampled_from((8, 32)))
    def override_bits(self, seed: int, bits: int) -> None:
        group = self.paged.param_groups[0]
        if any(g["amsgrad"] for g in self.paged.param_groups) or not group["params"]:
            return
        for param in self.pair(seed):
            GlobalOptimManager.get_instance().override_config(param, "optim_bits", bits)

    # -- parameters

    @rule(seed=seeds, dtype=dtypes, is_flat=st.booleans())
    def replace_data(self, seed: int, dtype: torch.dtype, is_flat: bool) -> None:
        for param in self.pair(seed):
            data = param.detach().to(dtype)
            param.grad = None
            param.data = data.clone() if is_flat or data.dim() != 2 else data.t().contiguous().t()

    @rule(seed=seeds)
    def freeze_or_thaw(self, seed: int) -> None:
        for param in self.pair(seed):
            param.requires_grad_(not param.requires_grad)

    # -- state

    @rule(seed=seeds, key=st.sampled_from(("exp_avg", "exp_avg_sq")), hold=st.booleans(), detached=st.booleans())
    def edit(self, seed: int, key: str, hold: bool, detached: bool) -> None:
        optimizers, pair = (self.paged, self.plain), self.pair(seed)
        tensors = [optimizer.state[param].get(key) for optimizer, param in zip(optimizers, pair, strict=True)]
        if any(tensor is None for tensor in tensors):
            return
        if hold:
            self.held.append((tensors[0].detach(), tensors[1].detach()) if detached else (tensors[0], tensors[1]))
        for tensor in tensors:
            tensor.view(-1)[::3] = 0
        for optimizer, param, tensor in zip(optimizers, pair, tensors, strict=True):
            assert bytes_in(optimizer.state[param].copy()[key]) == bytes_in(tensor)

    @precondition(lambda self: getattr(self, "held", None))
    @rule()
    def edit_what_was_held_and_let_go(self) -> None:
        for tensor in self.held.pop():
            tensor.zero_()

    @rule(seed=seeds, way=st.sampled_from(("delete", "pop", "put back", "clear")))
    def take_state_away(self, seed: int, way: str) -> None:
        for optimizer, param in zip((self.paged, self.plain), self.pair(seed), strict=True):
            if way == "clear":
                optimizer.state.clear()
            elif param in optimizer.state:
                entry = optimizer.state[param]
                if way == "pop":
                    optimizer.state.pop(param)
                else:
                    del optimizer.state[param]
                if way == "put back":
                    optimizer.state[param] = entry

    # -- going on elsewhere

    @rule(way=st.sampled_from(("load", "checkpoint", "deepcopy", "pickle")), page_size=st.sampled_from(PAGE_SIZES))
    def go_on_elsewhere(self, way: str, page_size: str) -> None:
        self.held.clear()
        if way in ("deepcopy", "pickle"):
            self.paged, self.plain = _copied((self.paged, self.plain), way)
            return
        if any(entry.get("exp_avg") is None for opt in (self.paged,) for entry in opt.state.values() if len(entry)):
            return
        pager = self.new_pager(page_size, 1)
        elsewhere = PagedAdamW([dict(group) for group in self.paged.param_groups], **self.kind, pager=pager)
        if way == "load":
            elsewhere.load_state_dict(self.paged.state_dict())
        else:
            pagedopt.save(self.paged, self.folder / "checkpoint")
            pagedopt.load(elsewhere, self.folder / "checkpoint")
        self.paged.close()
        self.paged = elsewhere

    # -- what goes wrong

    @rule(seed=seeds)
    def be_refused(self, seed: int) -> None:
        """A step or a load that cannot be: then all is as it was."""
        param = self.pair(seed)[0]
        with pytest.raises(TypeError, match="complex"):
            self.paged.step_param(param, torch.zeros(param.shape, dtype=torch.complex64))
        saved = self.paged.state_dict()
        saved["param_groups"][0].update(amsgrad=not saved["param_groups"][0]["amsgrad"], optim_bits=32)
        saved["state"][0] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3, 5), "exp_avg_sq": torch.zeros(3, 5)}
        with pytest.raises((ValueError, CheckpointError)):
            self.paged.load_state_dict(saved)

    @rule(seed=seeds, after=st.integers(0, 12), call=st.sampled_from(("preadv", "pwritev")))
    def step_on_a_failing_disk(self, seed: int, after: int, call: str) -> None:
        """Then the step was made, was not begun, or nothing goes on until state is loaded."""
        self.give_gradients(seed, 1.0, None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, _failing(getattr(os, call), after))
            try:
                self.paged.step()
                self.paged.flush()
            except (SpillError, StateLostError):
                pass
        self.plain.step()
        try:
            was_made = _steps(self.paged) == _steps(self.plain)
        except StateLostError:
            self.paged.load_state_dict(self.plain.state_dict())
            for ours, theirs in self.pairs:
                ours.data.copy_(theirs)
            self.held.clear()
            return
        if not was_made:
            self.paged.step()

    # -- what always holds

    @invariant()
    def both_have_the_same_bits(self) -> None:
        if not hasattr(self, "paged"):
            return
        for ours, theirs in self.pairs:
            assert bytes_in(ours.detach()) == bytes_in(theirs.detach())
        ours_saved, theirs_saved = self.paged.state_dict()["state"], self.plain.state_dict()["state"]
        assert ours_saved.keys() == theirs_saved.keys()
        for index, entry in ours_saved.items():
            assert entry.keys() == theirs_saved[index].keys()
            for key, value in entry.items():
                assert bytes_in(value) == bytes_in(theirs_saved[index][key]), (index, key)

    @invariant()
    def the_budget_holds(self) -> None:
        if not hasattr(self, "paged"):
            return
        memory = self.paged.pager.on(torch.device("cpu")).memory
        assert memory.budget_nbytes is not None
        assert memory.frame_nbytes <= memory.budget_nbytes

    def teardown(self) -> None:
        if not hasattr(self, "paged"):
            return
        pager = self.paged.pager.on(torch.device("cpu"))
        self.paged.close()
        assert (pager.memory.num_pages, pager.memory.frame_nbytes, pager.memory.disk_nbytes) == (0, 0, 0)
        shutil.rmtree(self.folder)


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _parameter(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Parameter:
    return Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def _gradient(param: Tensor, seed: int, scale: float) -> Tensor:
    grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed)).mul_(scale)
    return grad.to(param.dtype)


def _copied(optimizers: tuple[Any, Any], way: str) -> Any:
    return copy.deepcopy(optimizers) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizers))


def _failing(call: Callable[..., int], after: int) -> Callable[..., int]:
    calls = itertools.count()

    def fail(*args: Any) -> int:
        if next(calls) >= after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*args)

    return fail


def _steps(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {index: float(entry["step"]) for index, entry in optimizer.state_dict()["state"].items()}


TestOptimizerMachine = OptimizerMachine.TestCase
TestOptimizerMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
