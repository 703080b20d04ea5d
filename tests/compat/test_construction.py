"""How optimizers are made where users live: laws A1 to A5 of the compatibility list."""

from __future__ import annotations

import gc
import inspect
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

import pagedopt
from child import report_of, run_python
from oracle import assert_same_params, give, random_grads, random_params, train, twins
from residue import needs_proc, open_files_in

pytestmark = pytest.mark.framework(
    "torch.optim", "made as trainers, configuration files and command lines make optimizers"
)

PLAIN = ("AdamW", "AdamW8bit", "AdamW32bit")
PAGED = ("PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit")
SIX = [getattr(pagedopt, name) for name in PLAIN + PAGED]
PAGED_CLASSES = [getattr(pagedopt, name) for name in PAGED]

each_class = pytest.mark.parametrize("cls", SIX, ids=lambda cls: cls.__name__)


@each_class
def test_arguments_are_taken_in_bitsandbytes_order(cls: Any) -> None:
    """A1: eleven positional arguments after params, `is_paged` twelfth on the plain classes."""
    positional = [1e-2, (0.5, 0.6), 1e-6, 0.25, False, 32, None, 128, 100, True]
    if not cls.__name__.startswith("Paged"):
        positional.append(False)
    opt = cls(random_params([(3,)]), *positional)
    group = opt.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) == (1e-2, (0.5, 0.6), 1e-6, 0.25)


@each_class
@pytest.mark.parametrize("keyword", ["foreach", "fused", "capturable", "differentiable"])
def test_a_torch_keyword_that_cannot_be_honoured_is_refused_when_truthy(cls: Any, keyword: str) -> None:
    """A1: `None` and `False` ask for nothing and are accepted; `True` asks for what is not there."""
    for nothing in (None, False):
        cls(random_params([(3,)]), **{keyword: nothing})
    with pytest.raises(ValueError, match=keyword):
        cls(random_params([(3,)]), **{keyword: True})


@each_class
def test_maximize_ascends(cls: Any) -> None:
    """A1: `maximize=True` steps exactly as minimizing the negated gradient does."""
    ours, mirrored = twins(random_params([(5000,), (3,)]))
    up, down = cls(ours, maximize=True), cls(mirrored)
    for step in range(3):
        grads = random_grads(ours, seed=step)
        give(ours, grads)
        give(mirrored, [-g for g in grads])
        up.step()
        down.step()
    assert_same_params(ours, mirrored)


@each_class
def test_the_class_is_an_ordinary_optimizer(cls: Any) -> None:
    """A2: no metaclass, slots, finalizer method or train mode that a framework would trip over."""
    assert issubclass(cls, torch.optim.Optimizer)
    assert not issubclass(cls, torch.optim.AdamW)
    assert type(cls) is type
    assert not hasattr(cls, "__del__")
    own = [base for base in cls.__mro__ if base.__module__.startswith("pagedopt")]
    assert all("__slots__" not in vars(base) for base in own)
    opt = cls(random_params([(3,)]))
    assert not hasattr(opt, "train")
    assert not hasattr(opt, "eval")
    assert "params" in inspect.signature(cls).parameters
    assert "lr" in inspect.signature(cls).parameters
    assert "betas" in opt.defaults


class _Wrapper:
    """What Lightning makes of an optimizer: a class of its own over the same attributes, whose `__init__` never ran."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        attributes = vars(optimizer).items()
        self.__dict__ = {k: v for k, v in attributes if k not in ("state_dict", "step", "zero_grad", "__del__")}
        self.__class__ = type("Fabric" + type(optimizer).__name__, (self.__class__, type(optimizer)), {})
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)

    def zero_grad(self, **kwargs: Any) -> None:
        self._optimizer.zero_grad(**kwargs)


@each_class
def test_a_wrapper_class_that_skips_init_trains_the_same(cls: Any) -> None:
    """A2: Lightning's wrapper steps, schedules, reads state and goes away without ending the wrapped optimizer."""
    ours, theirs = twins(random_params([(5000,), (3,)]))
    opt, plain = cls(ours), cls(theirs)
    wrapper: Any = _Wrapper(opt)
    assert isinstance(wrapper, torch.optim.Optimizer)
    for params, stepped in ((ours, wrapper), (theirs, plain)):
        scheduler = torch.optim.lr_scheduler.StepLR(stepped, step_size=1, gamma=0.5)
        train(stepped, params, 2, scheduler=scheduler)
    assert wrapper.param_groups is opt.param_groups
    assert set(wrapper.state) == set(ours)
    del wrapper, stepped, scheduler
    train(opt, ours, range(2, 4))
    train(plain, theirs, range(2, 4))
    assert_same_params(ours, theirs)


def test_the_plain_name_with_optim_bits_is_the_8bit_class() -> None:
    """A2: callers that treat names ending in "8bit" specially can have 8-bit state under another name."""
    ours, theirs = twins(random_params([(5000,), (3,)]))
    named, plain = pagedopt.PagedAdamW8bit(ours), pagedopt.PagedAdamW(theirs, optim_bits=8)
    train(named, ours, 3)
    train(plain, theirs, 3)
    assert_same_params(ours, theirs)
    assert plain.state[theirs[0]]["exp_avg"].dtype == torch.int8


def _parameter_forms(params: list[Parameter]) -> dict[str, Any]:
    return {
        "list": params,
        "generator": (p for p in params),
        "pairs": [(f"layer.{i}", p) for i, p in enumerate(params)],
        "groups": [{"params": params[:1]}, {"params": params[1:]}],
        "empty groups": [{"params": []}, {"params": params}, {"params": iter(())}],
        "foreign keys": [{"params": params, "initial_lr": 1e-3, "fused": None, "name": "decoder"}],
    }


@each_class
@pytest.mark.parametrize("form", list(_parameter_forms([])))
def test_parameters_come_in_every_form_that_torch_takes(cls: Any, form: str) -> None:
    """A3: list, generator, named pairs, groups, groups with nothing in them, groups with other people's keys."""
    ours, theirs = twins(random_params([(5000,), (3,)]))
    opt, plain = cls(_parameter_forms(ours)[form]), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    assert_same_params(ours, theirs)


def test_foreign_group_keys_are_kept() -> None:
    """A3: what a trainer writes into a group is there when it looks again, in the state dict too."""
    opt = pagedopt.PagedAdamW8bit([{"params": random_params([(3,)]), "initial_lr": 0.5, "name": "decoder"}])
    for group in (opt.param_groups[0], opt.state_dict()["param_groups"][0]):
        assert (group["initial_lr"], group["name"]) == (0.5, "decoder")


def test_named_parameters_keep_their_names() -> None:
    """A3: `named_parameters()` makes groups with `param_names`, as torch's own optimizers do."""
    model = nn.Linear(3, 2)
    assert pagedopt.AdamW(model.named_parameters()).param_groups[0]["param_names"] == ["weight", "bias"]


@needs_proc
@pytest.mark.parametrize("cls", PAGED_CLASSES, ids=lambda cls: cls.__name__)
def test_a_constructor_opens_nothing(cls: Any, tmp_path: Path) -> None:
    """A4: no thread, file or page before the first step, for a thousand optimizers of one parameter."""
    gc.collect()
    threads, native = threading.active_count(), len(list(Path("/proc/self/task").iterdir()))
    files = len(list(Path("/proc/self/fd").iterdir()))
    opts = [cls([p], max_host_memory="1MiB", spill_dir=tmp_path) for p in random_params([(8, 8)] * 1000)]
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/task").iterdir())) == native
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert not open_files_in(tmp_path)
    assert not list(tmp_path.iterdir())
    assert all(opt.memory_stats().pages == 0 for opt in opts[:10])


TORCH_CONSTRUCTOR_SECONDS = 10e-6
"""Processor time of `torch.optim.AdamW([p])` on the machine for which the bound below is meant."""


def best_seconds_each(make: Callable[[Parameter], Any]) -> float:
    """Return the processor time of one call, in the best of fifty runs of twenty."""
    best = float("inf")
    for _ in range(50):
        params = random_params([(8, 8)] * 20)
        begin = time.thread_time()
        made = [make(p) for p in params]
        best = min(best, (time.thread_time() - begin) / len(made))
    return best


@pytest.mark.parametrize("cls", PAGED_CLASSES, ids=lambda cls: cls.__name__)
def test_a_constructor_costs_microseconds(cls: Any, tmp_path: Path) -> None:
    """A4: under 100 µs of processor each. A machine that takes longer for torch's may take longer for this."""
    slowness = best_seconds_each(lambda p: torch.optim.AdamW([p])) / TORCH_CONSTRUCTOR_SECONDS
    assert best_seconds_each(lambda p: cls([p], spill_dir=tmp_path)) < 100e-6 * max(1.0, slowness)


_IMPORT = """
import json, sys, threading, time
begin = time.process_time()
import torch
torch_seconds = time.process_time() - begin
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
modules, threads, rng = set(sys.modules), threading.active_count(), torch.get_rng_state()
begin = time.process_time()
import pagedopt
seconds = time.process_time() - begin
print(json.dumps({
    "seconds": seconds,
    "torch_seconds": torch_seconds,
    "new": sorted(set(sys.modules) - modules),
    "cuda": torch.cuda.is_initialized(),
    "threads": threading.active_count() - threads,
    "rng": torch.equal(rng, torch.get_rng_state()),
    "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device())],
}))
"""


def test_import_has_no_side_effects(tmp_path: Path) -> None:
    """A5: no accelerator initialised, neither bitsandbytes nor triton imported, no thread, nothing drawn or printed."""
    done = run_python(_IMPORT, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    packages = {name.partition(".")[0] for name in report["new"]}
    assert not packages & {"bitsandbytes", "triton", "numpy", "matplotlib", "rich", "typer", "transformers"}
    assert report["cuda"] is False
    assert report["threads"] == 0
    assert report["rng"] is True
    assert report["defaults"] == ["torch.float32", "cpu"]


TORCH_SECONDS = 1.0
"""Processor time of `import torch` on the machine for which the bound below is meant."""


def test_import_takes_under_50_ms_beyond_torch(tmp_path: Path) -> None:
    """A5: of processor, the best of five, from bytecode, as it is installed: the first of them compiles.

    A machine that takes longer for torch may take longer for this.
    """
    reports = [report_of(_IMPORT, tmp_path) for _ in range(5)]
    slowness = min(report["torch_seconds"] for report in reports) / TORCH_SECONDS
    assert min(report["seconds"] for report in reports) < 0.050 * max(1.0, slowness)


def test_a_constructor_imports_no_compiler() -> None:
    """Torch's own add_param_group imports it, to keep away from it: two seconds, and 900 modules."""
    done = run_python(
        "import sys, torch, pagedopt; pagedopt.PagedAdamW8bit([torch.nn.Parameter(torch.zeros(3))]); "
        "print('torch._dynamo' in sys.modules)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
