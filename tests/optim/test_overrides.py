"""State kept otherwise for single parameters: options of param groups, and the override interface of bitsandbytes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from oracle import assert_same_params, give, random_grads, random_params, train, twins
from pagedopt import AdamW, AdamW8bit, GlobalOptimManager, PagedAdamW, PagedAdamW8bit

SHAPES = [(90, 300), (90, 300), (7,)]

eight_bit = pytest.mark.parametrize("cls", [AdamW8bit, PagedAdamW8bit], ids=lambda c: c.__name__)
each_class = pytest.mark.parametrize("cls", [AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)


@pytest.fixture
def overrides() -> Iterator[Any]:
    """The one of this process. Parameters of a test die with it, and what was said about them too."""
    yield GlobalOptimManager.get_instance()
    gc.collect()


def _bits(opt: Any, p: Tensor) -> int:
    return {torch.int8: 8, torch.float32: 32}[opt.state[p]["exp_avg"].dtype]


# Param groups.


@each_class
@pytest.mark.parametrize(
    "option", [{"optim_bits": 32}, {"min_8bit_size": 10**6}, {"block_wise": False}, {"percentile_clipping": 40}]
)
def test_an_option_of_a_group_is_the_argument_for_that_group(cls: Any, option: dict[str, Any]) -> None:
    """The group trains as if an optimizer with that argument had it alone; the other groups do not notice."""
    bits = 8 if "8bit" in cls.__name__ else 32
    base: Any = {AdamW8bit: AdamW, PagedAdamW8bit: PagedAdamW}.get(cls, cls)
    ours, theirs = twins(random_params(SHAPES))
    opt = cls([{"params": ours[:1], **option}, {"params": ours[1:]}])
    first, rest = base(theirs[:1], **{"optim_bits": bits, **option}), base(theirs[1:], optim_bits=bits)
    for step in range(4):
        grads = random_grads(ours, seed=step, scale=10.0 ** (step % 2))
        give(ours, grads)
        give(theirs, grads)
        for optimizer in (opt, first, rest):
            optimizer.step()
    assert_same_params(ours, theirs)
    for p, q, single in zip(ours, theirs, (first, rest, rest), strict=True):
        assert set(opt.state[p]) == set(single.state[q])
        for key, value in opt.state[p].items():
            assert value.shape == single.state[q][key].shape
            assert torch.equal(value, single.state[q][key]), key


@eight_bit
def test_a_group_can_keep_32_bits_in_an_8bit_class(cls: Any) -> None:
    """The usual use: embeddings."""
    params = random_params(SHAPES)
    opt = cls([{"params": params[:1], "optim_bits": 32}, {"params": params[1:]}])
    train(opt, params, 1)
    assert [_bits(opt, p) for p in params] == [32, 8, 32]


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_a_group_can_keep_8_bits_in_a_32bit_class(cls: Any) -> None:
    params = random_params(SHAPES)
    opt = cls([{"params": params[:1], "optim_bits": 8}, {"params": params[1:]}])
    train(opt, params, 1)
    assert [_bits(opt, p) for p in params] == [8, 32, 32]


@each_class
@pytest.mark.parametrize(
    ("name", "value"),
    [("optim_bits", 16), ("min_8bit_size", -5), ("percentile_clipping", 0), ("block_wise", "maybe")],
)
def test_a_wrong_option_of_a_group_is_an_error_that_names_it(cls: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name) as refused:
        cls([{"params": random_params(SHAPES), name: value}])
    assert str(value) in str(refused.value)


def test_amsgrad_and_8_bits_do_not_meet_in_a_group() -> None:
    with pytest.raises(ValueError, match="amsgrad"):
        AdamW([{"params": random_params(SHAPES), "optim_bits": 8}], amsgrad=True)


@eight_bit
def test_group_options_survive_a_checkpoint(cls: Any) -> None:
    """They decide how state is kept, so they are in the state dict, and a resume in equal groups is exact."""
    ours = random_params(SHAPES)
    opt = cls([{"params": ours[:1], "optim_bits": 32}, {"params": ours[1:], "block_wise": False}])
    train(opt, ours, 2)
    theirs = twins(ours, 1)[0]
    resumed = cls([{"params": theirs[:1], "optim_bits": 32}, {"params": theirs[1:], "block_wise": False}])
    resumed.load_state_dict(opt.state_dict())
    train(opt, ours, range(2, 4))
    train(resumed, theirs, range(2, 4))
    assert_same_params(ours, theirs)
    assert [_bits(resumed, p) for p in theirs] == [32, 8, 32]


# The override interface of bitsandbytes.


def test_there_is_one_instance(overrides: Any) -> None:
    assert GlobalOptimManager.get_instance() is overrides
    with pytest.raises(RuntimeError, match="get_instance"):
        GlobalOptimManager()


@eight_bit
@pytest.mark.parametrize("way", ["key and value", "dict", "list of parameters", "register_module_override"])
def test_an_override_holds_for_its_parameter(cls: Any, way: str, overrides: Any) -> None:
    """In the order that the documentation shows: register, make the optimizer, override, train."""
    embedding, other = nn.Embedding(90, 300), nn.Linear(300, 90)
    params = [embedding.weight, *other.parameters()]
    overrides.register_parameters(params)
    if way == "register_module_override":
        overrides.register_module_override(embedding, "weight", {"optim_bits": 32})
    opt = cls(params)
    if way == "key and value":
        overrides.override_config(embedding.weight, "optim_bits", 32)
    elif way == "dict":
        overrides.override_config(embedding.weight, key_value_dict={"optim_bits": 32})
    elif way == "list of parameters":
        overrides.override_config([embedding.weight], key="optim_bits", value=32)
    train(opt, params, 1)
    assert [_bits(opt, p) for p in params] == [32, 8, 32]


@eight_bit
def test_an_override_may_be_made_before_anything_is_registered(cls: Any, overrides: Any) -> None:
    """And before the optimizer exists."""
    params = random_params(SHAPES)
    overrides.override_config(params[0], "optim_bits", 32)
    opt = cls(params)
    train(opt, params, 1)
    assert [_bits(opt, p) for p in params] == [32, 8, 32]


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda c: c.__name__)
def test_hyperparameters_can_be_overridden(cls: Any, overrides: Any) -> None:
    """The documented example overrides lr and betas of single parameters."""
    ours, theirs = twins(random_params(SHAPES))
    overrides.override_config(ours[0], key_value_dict={"lr": 0.125, "betas": (0.5, 0.75), "weight_decay": 0.5})
    opt = cls(ours)
    alone = cls(theirs[:1], lr=0.125, betas=(0.5, 0.75), weight_decay=0.5)
    rest = cls(theirs[1:])
    for step in range(3):
        grads = random_grads(ours, seed=step)
        give(ours, grads)
        give(theirs, grads)
        for optimizer in (opt, alone, rest):
            optimizer.step()
    assert_same_params(ours, theirs)


def test_later_overrides_add_to_earlier_ones(overrides: Any) -> None:
    param = random_params(SHAPES[:1])[0]
    overrides.override_config(param, "optim_bits", 8)
    overrides.override_config(param, key_value_dict={"block_wise": False})
    opt = AdamW([param])
    train(opt, [param], 1)
    assert _bits(opt, param) == 8
    assert opt.state[param]["exp_avg_absmax"].shape == (1, 1)


@pytest.mark.parametrize(
    "config", [{"optim_bitz": 32}, {"optim_bits": 16}, {"percentile_clipping": 0}, {"lr": -1.0}], ids=str
)
def test_an_override_that_cannot_be_followed_is_refused(config: dict[str, Any], overrides: Any) -> None:
    """Naming the key: nothing that is accepted is ignored."""
    module = nn.Embedding(90, 300)
    with pytest.raises((ValueError, TypeError), match=next(iter(config))):
        overrides.override_config(module.weight, key_value_dict=config)
    with pytest.raises((ValueError, TypeError), match=next(iter(config))):
        overrides.register_module_override(module, "weight", config)
    opt = AdamW8bit(module.parameters())
    train(opt, [module.weight], 1)
    assert _bits(opt, module.weight) == 8


def test_key_and_dict_together_are_refused(overrides: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="key_value_dict"):
        overrides.override_config(random_params(SHAPES[:1])[0], "optim_bits", 32, {"optim_bits": 8})


@eight_bit
def test_a_module_override_follows_the_module(cls: Any, overrides: Any) -> None:
    """It names an attribute: a parameter put there later, as `load` with `assign=True` does, is the one meant."""
    embedding = nn.Embedding(90, 300)
    overrides.register_module_override(embedding, "weight", {"optim_bits": 32})
    old, embedding.weight = embedding.weight, Parameter(torch.randn(90, 300))
    opt = cls([embedding.weight, old])
    train(opt, [embedding.weight, old], 1)
    assert _bits(opt, embedding.weight) == 32
    assert _bits(opt, old) == 8


@eight_bit
def test_an_override_does_not_leak_to_another_model(cls: Any, overrides: Any) -> None:
    """Neither to the parameter in the same position of the next model, nor to one that got a dead one's address."""
    for round_ in range(20):
        params = random_params(SHAPES)
        opt = cls(params)
        if round_ % 2 == 0:
            overrides.register_parameters(params)
            overrides.override_config(params[0], "optim_bits", 32)
        train(opt, params, 1)
        assert [_bits(opt, p) for p in params] == [32 if round_ % 2 == 0 else 8, 8, 32]
        del params, opt


@eight_bit
def test_an_override_does_not_hold_on_to_what_it_is_for(cls: Any, overrides: Any) -> None:
    """Parameters, modules and optimizers die with their last owner, without the garbage collector."""
    embedding = nn.Embedding(90, 300)
    overrides.register_parameters(embedding.parameters())
    overrides.override_config(embedding.weight, "optim_bits", 32)
    overrides.register_module_override(embedding, "weight", {"percentile_clipping": 50})
    opt = cls(embedding.parameters())
    train(opt, list(embedding.parameters()), 1)
    gc.collect()
    gc.disable()
    try:
        dead = [weakref.ref(embedding), weakref.ref(opt)]
        weight = weakref.ref(embedding.weight)
        del embedding, opt
        assert [ref() for ref in dead] == [None, None]
        assert weight() is None
    finally:
        gc.enable()


@eight_bit
def test_an_override_of_bits_after_state_exists_is_not_ignored(cls: Any, overrides: Any) -> None:
    """It is followed from the next step on, or refused: never accepted and forgotten."""
    params = random_params(SHAPES)
    opt = cls(params)
    train(opt, params, 1)
    refusal = ""
    try:
        overrides.override_config(params[0], "optim_bits", 32)
        train(opt, params, range(1, 2))
    except (ValueError, RuntimeError) as refused:
        refusal = str(refused)
    assert "optim_bits" in refusal or (_bits(opt, params[0]), int(opt.state[params[0]]["step"])) == (32, 2)
