"""The interface, argument for argument: signatures, what is refused and how, and the verbs beside torch's own."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import pagedopt
from oracle import assert_same_params, assert_same_state, give, random_grads, random_params, train, twins
from pagedopt import (
    AdamW,
    AdamW8bit,
    AdamW32bit,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdamW32bit,
    PagedOptError,
    Pager,
)
from residue import needs_proc, open_files_in, tight_paging, wait_for_threads

PLAIN = [AdamW, AdamW8bit, AdamW32bit]
PAGED = [PagedAdamW, PagedAdamW8bit, PagedAdamW32bit]
SHAPES = [(300, 257), (4, 1030), (7,)]

each_class = pytest.mark.parametrize("cls", PLAIN + PAGED, ids=lambda c: c.__name__)
paged_class = pytest.mark.parametrize("cls", PAGED, ids=lambda c: c.__name__)
one_of_each = pytest.mark.parametrize("cls", [AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)


# Signatures.

BITSANDBYTES = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "amsgrad": False,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
}
PAGING = ["page_size", "max_gpu_memory", "max_host_memory", "spill_dir", "prefetch_depth", "pager"]
TORCH = {"foreach": None, "fused": None, "maximize": False, "capturable": False, "differentiable": False}


@each_class
def test_the_signature_is_bitsandbytes_then_paging_then_torch(cls: Any) -> None:
    parameters = inspect.signature(cls).parameters
    positional = ["params", *BITSANDBYTES, *([] if cls in PAGED else ["is_paged"])]
    assert list(parameters) == [*positional, *PAGING, *TORCH]
    expected = {**BITSANDBYTES, **TORCH, "max_gpu_memory": None, "max_host_memory": None, "pager": None}
    if cls not in PAGED:
        expected["is_paged"] = False
    for name, parameter in parameters.items():
        is_positional = name in positional
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if is_positional else inspect.Parameter.KEYWORD_ONLY
        assert parameter.kind == kind, name
        if name in expected:
            assert parameter.default == expected[name], name
            assert type(parameter.default) is type(expected[name]), name
    assert parameters["params"].default is inspect.Parameter.empty
    assert parameters["spill_dir"].default is None


# Arguments that mean the same in two ways.


@each_class
def test_betas_may_be_text(cls: Any) -> None:
    """Trainers pass `--optim-args betas=(0.8,0.95)` on as text."""
    ours, theirs = twins(random_params(SHAPES))
    spoken, plain = cls(ours, betas="(0.8, 0.95)"), cls(theirs, betas=(0.8, 0.95))
    train(spoken, ours, 3)
    train(plain, theirs, 3)
    assert_same_params(ours, theirs)
    assert tuple(spoken.param_groups[0]["betas"]) == (0.8, 0.95)


@each_class
@pytest.mark.parametrize("lr", [torch.tensor(0.02), torch.tensor([0.02]), torch.tensor(0.02, dtype=torch.float64)])
def test_lr_may_be_a_tensor_of_one_value(cls: Any, lr: Tensor) -> None:
    ours, theirs = twins(random_params(SHAPES))
    given, plain = cls(ours, lr=lr.clone()), cls(theirs, lr=float(lr))
    train(given, ours, 3)
    train(plain, theirs, 3)
    assert_same_params(ours, theirs)


@each_class
def test_a_list_of_betas_is_a_pair(cls: Any) -> None:
    """Configuration files have no tuples."""
    ours, theirs = twins(random_params(SHAPES))
    train(cls(ours, betas=[0.8, 0.95]), ours, 2)
    train(cls(theirs, betas=(0.8, 0.95)), theirs, 2)
    assert_same_params(ours, theirs)


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "options",
    [
        {"optim_bits": 8},
        {"optim_bits": 8, "min_8bit_size": 100_000},
        {"optim_bits": 8, "block_wise": False},
        {"percentile_clipping": 40},
        {"optim_bits": 8, "min_8bit_size": 10, "block_wise": False, "percentile_clipping": 40},
    ],
)
def test_attributes_of_args_override_the_arguments(cls: Any, options: dict[str, Any]) -> None:
    """`args` may have any of the four attributes; those it has not stay what the arguments say."""
    ours, theirs = twins(random_params(SHAPES))
    through_args, plain = cls(ours, args=SimpleNamespace(**options, unrelated=1)), cls(theirs, **options)
    train(through_args, ours, 3)
    train(plain, theirs, 3)
    assert_same_params(ours, theirs)
    ours_state, theirs_state = through_args.state_dict()["state"], plain.state_dict()["state"]
    assert [set(e) for e in ours_state.values()] == [set(e) for e in theirs_state.values()]
    assert [e["exp_avg"].dtype for e in ours_state.values()] == [e["exp_avg"].dtype for e in theirs_state.values()]


@pytest.mark.parametrize("cls", PLAIN, ids=lambda c: c.__name__)
def test_is_paged_pages(cls: Any, tmp_path: Path) -> None:
    """A plain class with `is_paged=True` takes the paging arguments and keeps to the budget."""
    paged = {AdamW: PagedAdamW, AdamW8bit: PagedAdamW8bit, AdamW32bit: PagedAdamW32bit}[cls]
    ours, theirs = twins(random_params([(300, 257), (7,)]))
    opt, peer = cls(ours, is_paged=True, **tight_paging(cls, tmp_path)), paged(theirs, **tight_paging(cls, tmp_path))
    train(opt, ours, 2)
    train(peer, theirs, 2)
    assert_same_params(ours, theirs)
    assert opt.memory_stats().pages == peer.memory_stats().pages > 1
    assert opt.memory_stats().budget_bytes == tight_paging(cls)["max_host_memory"]


# Bits.


def _bits(opt: Any, p: Tensor) -> int:
    return {torch.int8: 8, torch.float32: 32}[opt.state[p]["exp_avg"].dtype]


@each_class
def test_the_class_fixes_the_bits(cls: Any) -> None:
    params = random_params([(64, 64)])
    opt = cls(params)
    train(opt, params, 1)
    assert _bits(opt, params[0]) == (8 if "8bit" in cls.__name__ else 32)


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_optim_bits_chooses_8_or_32(cls: Any) -> None:
    for bits in (8, 32):
        params = random_params([(64, 64)])
        opt = cls(params, optim_bits=bits)
        train(opt, params, 1)
        assert _bits(opt, params[0]) == bits


@each_class
@pytest.mark.parametrize("bits", [0, 4, 16, 64, "many", None])
def test_other_bits_are_refused(cls: Any, bits: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="optim_bits") as refused:
        cls(random_params([(3,)]), optim_bits=bits)
    assert repr(bits) in str(refused.value)


@pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit], ids=lambda c: c.__name__)
def test_the_8bit_classes_take_the_default_bits_only(cls: Any) -> None:
    """As bitsandbytes: `optim_bits=32` is what the argument is by default, and says nothing."""
    cls(random_params([(3,)]), optim_bits=32)
    with pytest.raises(ValueError, match="optim_bits"):
        cls(random_params([(3,)]), optim_bits=8)


@pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit], ids=lambda c: c.__name__)
def test_parameters_below_min_8bit_size_keep_32_bits(cls: Any) -> None:
    """Strictly below: 4,096 values are 8 bits by default, 4,095 are not."""
    params = random_params([(4096,), (4095,), (64, 64), (0,)])
    opt = cls(params)
    train(opt, params, 1)
    assert [_bits(opt, p) for p in params] == [8, 32, 8, 32]
    opt = cls(params, min_8bit_size=4097)
    train(opt, params, 1)
    assert [_bits(opt, p) for p in params] == [32] * 4


@pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit], ids=lambda c: c.__name__)
def test_amsgrad_is_refused_for_8_bits(cls: Any) -> None:
    with pytest.raises(ValueError, match="amsgrad"):
        cls(random_params([(3,)]), amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        PagedAdamW(random_params([(3,)]), amsgrad=True, optim_bits=8)


# Wrong arguments.


def test_lr_of_two_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr.*\(2,\)"):
        AdamW(random_params([(3,)]), lr=torch.tensor([0.1, 0.2]))


WRONG: list[tuple[str, Any]] = [
    ("lr", -1.0),
    ("lr", float("nan")),
    ("lr", float("inf")),
    ("lr", "fast"),
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, -0.1)),
    ("betas", (0.9,)),
    ("betas", (0.9, 0.99, 0.999)),
    ("betas", "(0.9"),
    ("betas", "__import__('os')"),
    ("betas", 0.9),
    ("eps", -1e-8),
    ("eps", float("nan")),
    ("weight_decay", -0.1),
    ("weight_decay", float("nan")),
    ("min_8bit_size", -1),
    ("min_8bit_size", "many"),
    ("percentile_clipping", 0),
    ("percentile_clipping", 101),
    ("percentile_clipping", 5.5),
    ("page_size", "many"),
    ("page_size", -1),
    ("page_size", 1.5),
]

WRONG_PAGING: list[tuple[str, Any]] = [
    ("max_host_memory", -1),
    ("max_host_memory", "lots"),
    ("max_host_memory", 1.5),
    ("max_gpu_memory", -1),
    ("max_gpu_memory", "2 parsecs"),
    ("prefetch_depth", -1),
    ("prefetch_depth", 1.5),
    ("prefetch_depth", "deep"),
    ("pager", "a pager"),
    ("spill_dir", 7),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: str(v)[:20])
@each_class
def test_a_wrong_argument_is_an_error_that_names_it_and_its_value(cls: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name) as refused:
        cls(random_params([(3,)]), **{name: value})
    shown = [repr(value), str(value)] + ([str(part) for part in value] if isinstance(value, tuple) else [])
    assert any(text in str(refused.value) for text in shown), refused.value


@pytest.mark.parametrize(("name", "value"), WRONG_PAGING, ids=lambda v: str(v)[:20])
@paged_class
def test_a_wrong_paging_argument_is_an_error_that_names_it_and_its_value(cls: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name) as refused:
        cls(random_params([(3,)]), **{name: value})
    assert str(value) in str(refused.value)


@pytest.mark.parametrize("name", ["lr", "betas", "eps", "weight_decay"])
def test_a_wrong_value_in_a_group_is_an_error_that_names_it(name: str) -> None:
    """Groups are checked as the arguments are, `add_param_group` too."""
    wrong = {"lr": -1.0, "betas": (0.9, 1.5), "eps": -1.0, "weight_decay": -1.0}[name]
    params = random_params([(3,), (3,)])
    with pytest.raises(ValueError, match=name):
        PagedAdamW([{"params": params[:1], name: wrong}])
    opt = PagedAdamW(params[:1])
    with pytest.raises(ValueError, match=name):
        opt.add_param_group({"params": params[1:], name: wrong})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("cls", PLAIN, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_gpu_memory", "1GiB"), ("max_host_memory", 0), ("spill_dir", "spill"), ("prefetch_depth", 2)],
)
def test_paging_arguments_of_a_class_that_does_not_page_are_refused(cls: Any, name: str, value: Any) -> None:
    """They would be ignored."""
    with pytest.raises(ValueError, match=name):
        cls(random_params([(3,)]), **{name: value})


def test_no_argument_is_ignored_beside_a_pager() -> None:
    """A pager has a budget, depth and folder of its own."""
    pager = Pager(max_host_memory="1MiB")
    with pytest.raises(ValueError, match="pager"):
        PagedAdamW(random_params([(3,)]), pager=pager, max_host_memory="2MiB")
    with pytest.raises(ValueError, match="pager"):
        AdamW(random_params([(3,)]), pager=pager)


def test_an_empty_list_of_parameters_is_torchs_error() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        PagedAdamW([])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@one_of_each
def test_a_parameter_of_a_dtype_without_update_is_refused(cls: Any, dtype: torch.dtype) -> None:
    """At construction or at the first step, saying what it is, before any other parameter is changed."""
    good, bad = random_params([(9,)])[0], Parameter(torch.zeros(3, dtype=dtype))
    before = good.detach().clone()
    good.grad, bad.grad = torch.ones_like(good), torch.ones_like(bad)
    with pytest.raises((ValueError, TypeError), match=r"complex|float64"):
        cls([good, bad]).step()
    assert torch.equal(good, before)


# Gradients that cannot be used.


@pytest.mark.parametrize(
    ("grad", "says"),
    [
        (torch.zeros(8, 9, dtype=torch.complex64), "complex"),
        (torch.zeros(8, 9, device="meta"), "meta"),
        (torch.zeros(9, 8), r"9.*8"),
        (torch.zeros(72), "72"),
        (torch.zeros(8, 9, dtype=torch.float64), "float64"),
        (torch.zeros(8, 9, dtype=torch.int64), "int64"),
        (torch.zeros(8, 9).to_sparse(), "sparse"),
    ],
    ids=["complex", "device", "transposed", "flat", "float64", "int64", "sparse"],
)
@one_of_each
def test_a_gradient_that_cannot_be_used_is_refused_before_anything_changes(cls: Any, grad: Tensor, says: str) -> None:
    """The parameter, its step, its state and the others stay; the next good step is as if nothing had been."""
    ours, theirs = twins(random_params([(5000,), (8, 9)]))
    opt, plain = cls(ours), cls(theirs)
    train(opt, ours, 1)
    train(plain, theirs, 1)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=says):
        opt.step_param(ours[1], grad)
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())
    train(opt, ours, range(1, 3))
    train(plain, theirs, range(1, 3))
    assert_same_params(ours, theirs)


@one_of_each
def test_a_sparse_gradient_in_step_is_refused_before_any_parameter_changes(cls: Any) -> None:
    """The first parameter's gradient is good, the last one's is not: neither is updated."""
    model = nn.ModuleList([nn.Linear(70, 70), nn.Embedding(50, 20, sparse=True)])
    before = [p.detach().clone() for p in model.parameters()]
    opt = cls(model.named_parameters())
    (model[0](torch.ones(70)).sum() + model[1](torch.tensor([1, 2])).sum()).backward()
    with pytest.raises((ValueError, TypeError, RuntimeError), match="sparse") as refused:
        opt.step()
    assert "1.weight" in str(refused.value)
    assert_same_params(list(model.parameters()), before)
    assert not opt.state
    opt.zero_grad()
    model[0](torch.ones(70)).sum().backward()
    opt.step()
    assert len(opt.state) == 2


# step_param.


@one_of_each
@pytest.mark.parametrize("by", ["object", "name", "gradient"])
def test_stepping_each_parameter_is_a_step_of_all(cls: Any, by: str) -> None:
    """By object, by name, or with a gradient that is nobody's `.grad`."""
    model = nn.Sequential(nn.Linear(257, 300), nn.Linear(300, 7))
    twin = copy.deepcopy(model)
    ours, theirs = list(model.parameters()), list(twin.parameters())
    opt, plain = cls(model.named_parameters()), cls(theirs)
    for step in range(3):
        grads = random_grads(ours, seed=1000 + step)
        give(ours, [None] * 4 if by == "gradient" else grads)
        for (name, p), grad in zip(model.named_parameters(), grads, strict=True):
            if by == "gradient":
                opt.step_param(p, grad)
            else:
                opt.step_param(name if by == "name" else p)
    train(plain, theirs, 3)
    assert_same_params(ours, theirs)
    assert_same_state_values(opt, plain)


def assert_same_state_values(ours: Any, theirs: Any) -> None:
    """As the law says for state, whatever the groups are called."""
    a, b = ours.state_dict()["state"], theirs.state_dict()["state"]
    groups: list[Any] = []
    assert_same_state({"state": a, "param_groups": groups}, {"state": b, "param_groups": groups})


@one_of_each
def test_an_unknown_name_is_a_key_error_that_says_what_is_known(cls: Any) -> None:
    opt = cls(nn.Linear(3, 2).named_parameters())
    with pytest.raises(KeyError) as refused:
        opt.step_param("wieght")
    assert all(word in str(refused.value) for word in ("wieght", "weight", "bias"))


@one_of_each
def test_a_name_where_there_are_none_and_a_stranger_are_key_errors(cls: Any) -> None:
    """A parameter that is in no group is as unknown as a name."""
    params = random_params(SHAPES)
    opt = cls(params)
    with pytest.raises(KeyError, match="named_parameters"):
        opt.step_param("weight")
    with pytest.raises(KeyError):
        opt.step_param(Parameter(torch.zeros(3)), torch.zeros(3))
    assert not opt.state


# lr, init_state.


@each_class
def test_set_lr_is_the_lr_of_every_group(cls: Any) -> None:
    params = random_params(SHAPES)
    opt = cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.25)
    assert opt.lr == 0.25
    opt.set_lr(0.125)
    assert opt.lr == 0.125
    assert [float(group["lr"]) for group in opt.param_groups] == [0.125, 0.125]
    with pytest.raises(ValueError, match=r"lr.*-1"):
        opt.set_lr(-1.0)
    assert opt.lr == 0.125


@one_of_each
def test_init_state_allocates_and_changes_nothing_else(cls: Any) -> None:
    """Every parameter has its zero state, also those that get no gradient; training goes on as without."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours), cls(theirs)
    opt.init_state()
    opt.init_state()
    for p in ours:
        assert float(opt.state[p]["step"]) == 0
        assert not opt.state[p]["exp_avg"].any()
        assert not opt.state[p]["exp_avg_sq"].any()
    assert opt.memory_stats().pages > 0
    pages = opt.memory_stats().pages
    train(opt, ours, 2)
    train(plain, theirs, 2)
    assert opt.memory_stats().pages == pages
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())


# Statistics.


def test_memory_stats_is_a_named_tuple_of_six() -> None:
    fields = ("host_bytes", "gpu_bytes", "pages", "resident_pages", "disk_bytes", "budget_bytes")
    assert issubclass(pagedopt.MemoryStats, tuple)
    assert pagedopt.MemoryStats._fields == fields


@one_of_each
def test_memory_stats_count_the_state(cls: Any) -> None:
    """On a CPU all of it is off the accelerator; at least the bytes of the state dict, at most whole pages."""
    params = random_params([(300, 257), (7,)])
    opt = cls(params)
    assert opt.memory_stats()[:4] == (0, 0, 0, 0)
    train(opt, params, 1)
    stats = opt.memory_stats()
    assert isinstance(stats, pagedopt.MemoryStats)
    entries = opt.state_dict()["state"].values()
    state = sum(v.numel() * v.element_size() for entry in entries for k, v in entry.items() if k != "step")
    assert stats.gpu_bytes == 0
    assert stats.host_bytes >= state
    assert stats.resident_pages <= stats.pages
    host_bytes, gpu_bytes, *_ = stats
    assert (host_bytes, gpu_bytes) == (stats.host_bytes, stats.gpu_bytes)


@paged_class
def test_memory_stats_are_of_one_optimizer(cls: Any, tmp_path: Path) -> None:
    """Also where others share its pager: they count their own pages."""
    ours, others = random_params([(300, 257), (7,)]), random_params([(900, 257)])
    first, second = cls(ours, **tight_paging(cls, tmp_path)), cls(others, **tight_paging(cls, tmp_path))
    train(first, ours, 1)
    alone = first.memory_stats()
    train(second, others, 1)
    assert (first.memory_stats().pages, first.memory_stats().host_bytes) == (alone.pages, alone.host_bytes)
    assert second.memory_stats().pages > alone.pages


def test_memory_stats_may_be_asked_for_while_another_thread_steps() -> None:
    """A monitor looks whenever it likes, also while parameters are placed and state is dropped."""
    params = random_params([(10,)] * 600)
    opt = PagedAdamW(params)
    seen: list[object] = []
    is_over = threading.Event()

    def watch() -> None:
        try:
            while not is_over.is_set():
                seen.append(opt.memory_stats())
        except RuntimeError as error:
            seen.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(4):
        train(opt, params, 1)
        opt.state.clear()
    is_over.set()
    watcher.join()
    assert len(seen) > 4
    assert not isinstance(seen[-1], Exception)


@paged_class
def test_memory_stats_know_the_budget_before_the_first_step(cls: Any, tmp_path: Path) -> None:
    paging = tight_paging(cls, tmp_path)
    assert cls(random_params(SHAPES), **paging).memory_stats().budget_bytes == paging["max_host_memory"]


@paged_class
def test_page_size_is_never_below_64_kib(cls: Any, tmp_path: Path) -> None:
    """And rounded up: state in one-byte pages is state in pages of 64 KiB."""
    pages = []
    for page_size in (1, "64KiB", 64 << 10):
        params = random_params([(300, 257)])
        opt = cls(params, page_size=page_size, spill_dir=tmp_path)
        train(opt, params, 1)
        pages.append(opt.memory_stats().pages)
        opt.close()  # or the next would share its pager, and the page that it left half full
    assert pages[0] == pages[1] == pages[2] > 1


@paged_class
def test_paging_stats_are_frozen_and_can_be_reset(cls: Any, tmp_path: Path) -> None:
    params = random_params([(300, 257), (7,)])
    opt = cls(params, **tight_paging(cls, tmp_path))
    train(opt, params, 3)
    stats = opt.paging_stats()
    assert isinstance(stats, pagedopt.PagingStats)
    names = ["faults", "hits", "prefetches", "evictions", "bytes_read", "bytes_written", "stalled_seconds"]
    assert all(hasattr(stats, name) for name in names)
    with pytest.raises(AttributeError):
        stats.faults = 0
    assert stats.bytes_read["disk"] > 0
    assert stats.bytes_written["disk"] > 0
    assert set(stats.bytes_read) | set(stats.bytes_written) <= {"host", "disk"}
    assert stats.stalled_seconds >= 0
    opt.reset_paging_stats()
    fresh = opt.paging_stats()
    assert sum(fresh.bytes_read.values()) == sum(fresh.bytes_written.values()) == fresh.faults == fresh.hits == 0
    assert stats.bytes_read["disk"] > 0


# The end.


@paged_class
def test_flush_writes_what_is_dirty_once(cls: Any, tmp_path: Path) -> None:
    params = random_params([(300, 257), (7,)])
    opt = cls(params, **tight_paging(cls, tmp_path))
    opt.flush()
    train(opt, params, 2)
    opt.flush()
    written = sum(opt.paging_stats().bytes_written.values())
    opt.flush()
    assert sum(opt.paging_stats().bytes_written.values()) == written
    theirs = random_params([(300, 257), (7,)])
    train(opt, params, range(2, 4))
    train(cls(theirs), theirs, 4)
    assert_same_params(params, theirs)


@needs_proc
@paged_class
def test_close_frees_and_a_closed_optimizer_does_not_train(cls: Any, tmp_path: Path) -> None:
    """Starting over in silence would be training with wrong state."""
    params = random_params([(300, 257), (7,)])
    threads = threading.active_count()
    opt = cls(params, **tight_paging(cls, tmp_path))
    train(opt, params, 2)
    opt.close()
    opt.close()
    assert not open_files_in(tmp_path)
    assert not list(tmp_path.iterdir())
    assert wait_for_threads(threads) == threads
    before = [p.detach().clone() for p in params]
    with pytest.raises(PagedOptError, match="closed"):
        train(opt, params, 1)
    assert_same_params(params, before)


@needs_proc
@each_class
def test_with_closes(cls: Any, tmp_path: Path) -> None:
    params = random_params([(300, 257), (7,)])
    paging = tight_paging(cls, tmp_path) if cls in PAGED else {}
    with cls(params, **paging) as opt:
        assert isinstance(opt, cls)
        train(opt, params, 2)
    assert not open_files_in(tmp_path)
    with pytest.raises(PagedOptError, match="closed"):
        train(opt, params, 1)


@one_of_each
def test_a_closed_optimizer_can_still_be_dropped_and_its_params_used_again(cls: Any) -> None:
    ours, theirs = twins(random_params(SHAPES))
    with cls(ours) as opt:
        train(opt, ours, 1)
    theirs = twins(ours, 1)[0]
    train(cls(ours), ours, 2)
    train(cls(theirs), theirs, 2)
    assert_same_params(ours, theirs)


# Copies.


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deep", "pickle"])
@paged_class
def test_a_copy_has_its_own_pages_and_outlives_the_original(cls: Any, way: Any, tmp_path: Path) -> None:
    params = random_params([(300, 257), (7,)])
    opt = cls(params, **tight_paging(cls, tmp_path))
    train(opt, params, 2)
    copies, twin = way((params, opt))
    train(opt, params, range(2, 5))
    opt.close()
    train(twin, copies, range(2, 5))
    assert_same_params(copies, params)


@each_class
def test_repr_shows_the_groups(cls: Any) -> None:
    text = repr(cls(random_params([(3,)]), lr=0.125))
    assert text.startswith(cls.__name__)
    assert "0.125" in text


@one_of_each
def test_a_group_can_be_added_in_the_middle_of_training(cls: Any) -> None:
    """Unfreezing adds a group; the state that is there goes on."""
    ours, theirs = twins(random_params(SHAPES))
    opt, first, second = cls(ours[:2]), cls(theirs[:2]), cls(theirs[2:], lr=0.5)
    train(opt, ours[:2], 2)
    train(first, theirs[:2], 2)
    opt.add_param_group({"params": ours[2:], "lr": 0.5})
    for step in range(2):
        grads = random_grads(ours, seed=step)
        give(ours, grads)
        give(theirs, grads)
        opt.step()
        first.step()
        second.step()
    assert_same_params(ours, theirs)
    assert [int(opt.state[p]["step"]) for p in ours] == [4, 4, 2]


def test_a_cuda_graph_that_would_capture_a_step_is_refused(monkeypatch):
    param = torch.nn.Parameter(torch.ones(300))
    param.grad = torch.ones(300)
    optimizer = AdamW([param])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for step in (optimizer.step, lambda: optimizer.step_param(param)):
        with pytest.raises(RuntimeError, match="call step\\(\\) after the replay"):
            step()
    assert torch.equal(param, torch.ones(300))
    assert not optimizer.state
