"""What step() meets where users live: laws B1 to B9 of the compatibility list."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from oracle import (
    Float64AdamW,
    assert_same_params,
    assert_same_state,
    give,
    random_grads,
    random_params,
    train,
    twins,
)
from pagedopt import AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit
from residue import needs_proc, open_files_in, smallest_budget

pytestmark = pytest.mark.framework(
    "torch.optim", "`step()`, with schedulers, scalers, hooks and whatever a model does to its parameters between steps"
)

# One parameter of several blocks a row, one of 8 bits in part of a page, one that stays in 32 bits.
SHAPES = [(90, 257), (4, 1030), (7,)]
FOUR_KINDS = [AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit]

each_class = pytest.mark.parametrize("cls", FOUR_KINDS, ids=lambda cls: cls.__name__)
each_bits = pytest.mark.parametrize("cls", [PagedAdamW32bit, PagedAdamW8bit], ids=lambda cls: cls.__name__)

FLOAT32_ROUNDING = 2e-6
"""Relative error of a few float32 operations on values of the size of one."""


def _close(ours: Tensor, truth: Tensor) -> bool:
    return torch.allclose(ours.double(), truth.double(), rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)


# B1: hyperparameters come from the group, at every step.


@each_class
def test_numbers_of_numpy_are_numbers(cls: Any) -> None:
    """B1: a schedule that computes with NumPy writes its numbers into the groups."""
    numpy = pytest.importorskip("numpy")
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours), cls(theirs)
    opt.param_groups[0]["lr"] = numpy.float32(0.25)
    opt.param_groups[0]["betas"] = (numpy.float64(0.5), numpy.float32(0.75))
    plain.param_groups[0].update(lr=0.25, betas=(0.5, 0.75))
    train(opt, ours, 2)
    train(plain, theirs, 2)
    assert_same_params(ours, theirs)


@each_class
def test_a_wrong_option_in_a_group_is_named_at_every_step_until_it_is_mended(cls: Any) -> None:
    """B1: and nothing changes meanwhile."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours), cls(theirs)
    for optimizer, params in ((opt, ours), (plain, theirs)):
        train(optimizer, params, 1)
    opt.param_groups[0]["min_8bit_size"] = "many"
    for _ in range(2):
        with pytest.raises(TypeError, match=r"min_8bit_size .*many"):
            train(opt, ours, range(1, 2))
    del opt.param_groups[0]["min_8bit_size"]
    for optimizer, params in ((opt, ours), (plain, theirs)):
        train(optimizer, params, range(1, 3))
    assert_same_params(ours, theirs)


def _change_one(group: dict[str, Any], step: int) -> None:
    """Write another hyperparameter at each step, as schedulers and people do."""
    if step == 1:
        group["lr"] = 5e-2
    if step == 2:
        group["betas"] = (0.7, 0.9)
    if step == 3:
        group["eps"] = 1e-2
    if step == 4:
        group["weight_decay"] = 0.5


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW32bit], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_hyperparameters_are_read_from_the_group_at_every_step(cls: Any, tensor_lr: bool) -> None:
    """B1: a group's lr, betas, eps and weight_decay hold from the next step on; lr may be a 0-d tensor."""
    ours, theirs = twins(random_params(SHAPES))
    opt, peer = cls(ours), torch.optim.AdamW(theirs, foreach=False)
    for step in range(6):
        for optimizer, params in ((opt, ours), (peer, theirs)):
            group = optimizer.param_groups[0]
            _change_one(group, step)
            if tensor_lr and optimizer is opt:
                group["lr"] = torch.tensor(float(group["lr"]))
            give(params, random_grads(params, seed=step))
            optimizer.step()
    assert all(_close(a, b) for a, b in zip(ours, theirs, strict=True))


@each_class
def test_a_tensor_lr_is_followed_when_it_is_written_in_place(cls: Any) -> None:
    """B1: the constructor's 0-d tensor stays the group's lr, so `lr.fill_()` holds from the next step on."""
    lr = torch.tensor(1e-2)
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, lr=lr), cls(theirs, lr=float(lr))
    train(opt, ours, 1)
    train(plain, theirs, 1)
    lr.fill_(0.25)
    plain.param_groups[0]["lr"] = 0.25
    train(opt, ours, range(1, 3))
    train(plain, theirs, range(1, 3))
    assert_same_params(ours, theirs)


@pytest.mark.parametrize("policy", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("cls", [AdamW, PagedAdamW32bit], ids=lambda cls: cls.__name__)
def test_schedulers_that_write_betas_are_followed(cls: Any, policy: str) -> None:
    """B1: the cyclic policies write beta1 into the group at every step."""
    ours, theirs = twins(random_params(SHAPES))
    arguments: dict[str, Any] = {"max_lr": 0.1, "total_steps": 9}
    if policy == "CyclicLR":
        arguments = {"base_lr": 1e-3, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": True}
    for params, optimizer in ((ours, cls(ours)), (theirs, torch.optim.AdamW(theirs, foreach=False))):
        scheduler = getattr(torch.optim.lr_scheduler, policy)(optimizer, **arguments)
        first = optimizer.param_groups[0]["betas"]
        train(optimizer, params, 3, scheduler=scheduler)
        assert optimizer.param_groups[0]["betas"] != first
        train(optimizer, params, range(3, 8), scheduler=scheduler)
    assert all(_close(a, b) for a, b in zip(ours, theirs, strict=True))


# B2: one ordinary step method.


@each_class
def test_step_is_one_ordinary_method(cls: Any) -> None:
    """B2: a bound method with `__func__`, that can be assigned to and put back."""
    params = random_params(SHAPES)
    opt = cls(params)
    assert inspect.ismethod(opt.step)
    assert "closure" in inspect.signature(opt.step).parameters
    original, calls = opt.step, []

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    opt.step = patched
    train(opt, params, 1)
    opt.step = original
    train(opt, params, range(1, 2))
    assert calls == [1]
    assert opt.state[params[0]]["step"].item() == 2


@each_class
def test_a_scheduler_sees_that_step_was_called(cls: Any) -> None:
    """B2: no "lr_scheduler.step() before optimizer.step()" warning (warnings are errors here), twice wrapped too."""
    params = random_params(SHAPES)
    opt = cls(params)
    first = torch.optim.lr_scheduler.ConstantLR(opt, factor=0.5)
    second = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.9)
    train(opt, params, 2, scheduler=first)
    train(opt, params, range(2, 4), scheduler=second)
    assert opt.state[params[0]]["step"].item() == 4


@each_class
def test_a_closure_is_called_once_with_gradients_enabled(cls: Any) -> None:
    """B2: its loss is what step returns."""
    params = random_params([(5, 3)])
    opt = cls(params)
    calls = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        calls.append(1)
        opt.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    before = params[0].detach().clone()
    loss = opt.step(closure)
    assert calls == [1]
    assert loss == before.square().sum()
    assert not torch.equal(params[0], before)


@each_class
def test_step_hooks_fire_once(cls: Any) -> None:
    """B2: the optimizer's own and the global ones, before and after."""
    params = random_params(SHAPES)
    opt = cls(params)
    fired: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda *_: fired.append("pre")),
        opt.register_step_post_hook(lambda *_: fired.append("post")),
        register_optimizer_step_pre_hook(lambda *_: fired.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: fired.append("global post")),
    ]
    try:
        train(opt, params, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(fired) == ["global post", "global pre", "post", "pre"]


@each_class
def test_the_profiler_shows_one_label_a_step(cls: Any) -> None:
    """B2: torch's own label with the name of the class that was made."""
    params = random_params(SHAPES)
    opt = cls(params)
    give(params, random_grads(params, seed=0))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
        opt.step()
    labels = {event.key: event.count for event in profile.key_averages() if event.key.startswith("Optimizer.step")}
    assert labels == {f"Optimizer.step#{cls.__name__}.step": 2}


# B3: parameters change in place, in their own storage.


def _laid_out(kind: str) -> tuple[Tensor, Tensor]:
    """Return a tensor laid out as `kind` says and the whole buffer that it is a part of."""
    if kind == "channels last":
        base = torch.randn(8, 16, 20, 20)
        return base.to(memory_format=torch.channels_last), base.new_empty(0)
    if kind == "transposed":
        base = torch.randn(257, 90)
        return base.t(), base
    if kind == "strided":
        base = torch.randn(90, 600)
        return base[::2, 1::3], base
    if kind == "column":
        base = torch.randn(9000, 2)
        return base[:, 1], base
    if kind == "odd offset":
        base = torch.randn(9001)
        return base[1:-1], base
    base = torch.randn(9001, dtype=torch.bfloat16)
    return base[3:-2], base


LAYOUTS = ["channels last", "transposed", "strided", "column", "odd offset", "odd bfloat16 offset"]


@each_class
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_parameter_of_any_layout_is_updated_as_its_contiguous_twin(cls: Any, kind: str) -> None:
    """B3: same bits as the contiguous copy; storage, strides and everything around the view stay as they are."""
    view, base = _laid_out(kind)
    twin = [Parameter(view.detach().clone(memory_format=torch.contiguous_format))]
    param = Parameter(view)
    outside = base.clone()
    place = (param.data_ptr(), param.stride(), param.storage_offset())
    opt, plain = cls([param]), cls(twin)
    for _ in range(3):
        grad = torch.randn(param.shape).to(param.dtype)
        give([param], [torch.empty_like(param).copy_(grad)])
        give(twin, [grad])
        version = param._version
        opt.step()
        plain.step()
        assert param._version > version
    assert_same_params([param], twin)
    assert place == (param.data_ptr(), param.stride(), param.storage_offset())
    if base.numel():
        mask = torch.ones_like(base, dtype=torch.bool)
        mask.as_strided(param.shape, param.stride(), param.storage_offset()).fill_(False)
        assert torch.equal(base[mask], outside[mask])


@each_class
@pytest.mark.parametrize("kind", ["expanded", "transposed", "strided"])
def test_a_gradient_of_any_layout_is_read_as_its_contiguous_twin(cls: Any, kind: str) -> None:
    """B3: autograd hands out expanded and transposed gradients."""
    grad = {
        "expanded": torch.randn(90, 1).expand(90, 100),
        "transposed": torch.randn(100, 90).t(),
        "strided": torch.randn(180, 300)[::2, ::3],
    }[kind]
    ours, theirs = twins(random_params([(90, 100)]))
    opt, plain = cls(ours), cls(theirs)
    ours[0].grad = grad
    theirs[0].grad = grad.contiguous()
    opt.step()
    plain.step()
    assert_same_params(ours, theirs)


@each_class
@pytest.mark.parametrize("shape", [(1,), (90, 100)])
def test_a_negative_view_is_read_as_what_it_stands_for(cls: Any, shape: tuple[int, ...]) -> None:
    """B3: the imaginary part of a conjugate has the memory of the other sign, and autograd hands it out."""
    ours, theirs = twins(random_params([shape]))
    opt, plain = cls(ours), cls(theirs)
    grad = torch.randn(shape)
    ours[0].grad = torch.complex(grad, grad).conj().imag if shape == (1,) else torch._neg_view(grad)
    assert ours[0].grad.is_neg()
    theirs[0].grad = -grad
    opt.step()
    plain.step()
    assert_same_params(ours, theirs)


@each_class
def test_an_expanded_parameter_is_refused_before_anything_changes(cls: Any) -> None:
    """B3: its values are one in memory, and cannot each be updated."""
    params = [*random_params([(70, 70)]), Parameter(torch.zeros(1, 3).expand(90, 3))]
    opt = cls(params)
    before = params[0].detach().clone()
    with pytest.raises(ValueError, match=r"\(90, 3\) is expanded"):
        train(opt, params, 1)
    assert torch.equal(params[0], before)
    give(params, [torch.ones(70, 70), None])
    opt.step()
    assert not torch.equal(params[0], before)


@each_class
def test_gradients_are_not_touched(cls: Any) -> None:
    """B3: same object, same bits, same version, clipping and maximizing included."""
    params = random_params(SHAPES)
    opt = cls(params, maximize=True, percentile_clipping=50)
    for step in range(3):
        give(params, random_grads(params, seed=step, scale=10.0**step))
        grads = [p.grad for p in params]
        before = [(g.clone(), g._version) for g in grads if g is not None]
        opt.step()
        for p, grad, (value, version) in zip(params, grads, before, strict=True):
            assert p.grad is grad
            assert grad is not None
            assert torch.equal(grad, value)
            assert grad._version == version


@each_class
def test_tied_and_viewed_parameters_stay_tied(cls: Any) -> None:
    """B3: a view taken before training shows what training did."""
    model = nn.Linear(40, 110)
    view, detached = model.weight.view(-1), model.weight.detach()
    opt = cls(model.parameters())
    model(torch.randn(2, 40)).square().sum().backward()
    opt.step()
    assert torch.equal(view, model.weight.flatten())
    assert torch.equal(detached, model.weight)


# B4: gradients and parameters of every kind.


@each_class
def test_parameters_without_gradient_keep_still_and_do_not_count(cls: Any) -> None:
    """B4: no gradient: no update, no step counted, no state made; freezing and unfreezing resumes the state."""
    ours, theirs = twins(random_params(SHAPES))
    opt = cls(ours, lr=1e-2)
    alone = [cls([p], lr=1e-2) for p in theirs]
    for step in range(6):
        grads = random_grads(ours, seed=step)
        present = [step >= 2, step % 2 == 0, step != 3]
        give(ours, [g if here else None for g, here in zip(grads, present, strict=True)])
        opt.step()
        for p, g, here, single in zip(theirs, grads, present, alone, strict=True):
            if here:
                give([p], [g])
                single.step()
        if step == 1:
            assert ours[0] not in opt.state
    assert_same_params(ours, theirs)
    assert [int(opt.state[p]["step"]) for p in ours] == [4, 3, 5]


@each_class
def test_a_parameter_of_another_shape_is_refused_though_it_has_as_many_values(cls: Any) -> None:
    """B4: its state belongs to other values now, and torch's own optimizers refuse it, too."""
    params = random_params([(64, 90), (7,)])
    opt = cls(params)
    train(opt, params, 1)
    params[0].data = params[0].detach().t().contiguous()
    before = twins(params, 1)[0]
    with pytest.raises(ValueError, match=r"\(90, 64\).*\(64, 90\)"):
        train(opt, params, 1)
    assert_same_params(params, before)
    del opt.state[params[0]]
    train(opt, params, 1)
    assert opt.state[params[0]]["exp_avg"].shape == (90, 64)


@each_class
def test_a_parameter_that_is_named_twice_is_refused(cls: Any) -> None:
    """B4: torch warns, and updates it twice a step; its checkpoint would name it twice and could not be loaded."""
    param = random_params([(7,)])[0]
    with pytest.warns(UserWarning, match="duplicate"):
        opt = cls([param, param])
    before = param.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 1 of group 0 .*twice"):
            train(opt, [param], 1)
    assert torch.equal(param, before)


@each_class
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1, 1)])
def test_the_smallest_parameters_train(cls: Any, shape: tuple[int, ...]) -> None:
    """B4: 0-d, empty and one-element parameters, alone and beside others."""
    ours = random_params([shape, (9, 500)])
    truth = [Float64AdamW(p, lr=1e-2) for p in ours[:1]]
    opt = cls(ours, lr=1e-2)
    for step in range(4):
        grads = random_grads(ours, seed=step)
        give(ours, grads)
        opt.step()
        truth[0].update(grads[0])
    assert _close(ours[0], truth[0].theta)
    alone = cls(random_params([shape]))
    train(alone, alone.param_groups[0]["params"], 2)


@pytest.mark.parametrize("param_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [AdamW, PagedAdamW], ids=lambda cls: cls.__name__)
def test_a_float32_gradient_of_a_half_precision_parameter_is_used_as_it_is(cls: Any, param_dtype: torch.dtype) -> None:
    """B4: a gradient of another float dtype is not rounded to the parameter's."""
    start = random_params([(40, 120)], param_dtype)[0]
    ours, rounded = Parameter(start.detach().float()), Parameter(start.detach().clone())
    grad = torch.randn(40, 120)
    ours.grad = grad
    ours.data = start.detach().clone()  # what Module.to does to a parameter whose gradient somebody kept in float32
    assert ours.grad.dtype == torch.float32
    give([rounded], [grad.to(param_dtype)])
    opt, other = cls([ours], lr=1e-2), cls([rounded], lr=1e-2)
    opt.step()
    other.step()
    assert torch.equal(opt.state[ours]["exp_avg"], grad.mul(opt.state[ours]["exp_avg"].new_tensor(0.1)))
    assert not torch.equal(opt.state[ours]["exp_avg"], other.state[rounded]["exp_avg"])


@each_class
def test_a_model_may_change_dtype_between_steps(cls: Any) -> None:
    """B4: `model.to(dtype)` keeps the parameter objects, and their state goes on counting, unchanged."""
    model = nn.Linear(70, 90)
    params = list(model.parameters())
    opt = cls(params, lr=1e-2)
    train(opt, params, 2)
    model.to(torch.bfloat16)
    before = [p.detach().clone() for p in params]
    train(opt, params, range(2, 4))
    assert all(p.dtype == torch.bfloat16 for p in params)
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert all(int(opt.state[p]["step"]) == 4 for p in params)
    assert opt.state[params[1]]["exp_avg"].dtype == torch.float32


# B5: right in every mode that torch can be in.


def _trained(cls: Any, steps: int = 2) -> list[Parameter]:
    params = random_params(SHAPES)
    opt = cls(params)
    train(opt, params, steps)
    return params


@each_class
def test_a_default_device_does_not_leak_into_state(cls: Any) -> None:
    """B5: `with torch.device("meta")`, as models are built under."""
    params = random_params(SHAPES)
    grads = [random_grads(params, seed=1000 + step) for step in range(2)]
    with torch.device("meta"):
        opt = cls(params)
        for step in range(2):
            give(params, grads[step])
            opt.step()
        state = opt.state_dict()
    assert_same_params(params, _trained(cls))
    assert all(v.device.type == "cpu" for entry in state["state"].values() for v in entry.values())


@each_class
def test_a_default_dtype_does_not_leak_into_the_arithmetic(cls: Any) -> None:
    """B5: `torch.set_default_dtype(torch.bfloat16)`, as models are loaded under."""
    expected = _trained(cls)
    params = random_params(SHAPES)
    grads = [random_grads(params, seed=1000 + step) for step in range(2)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        opt = cls(params)
        for step in range(2):
            give(params, grads[step])
            opt.step()
        dtypes = {v.dtype for entry in opt.state_dict()["state"].values() for v in entry.values()}
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_params(params, expected)
    assert torch.bfloat16 not in dtypes


@each_class
def test_another_thread_may_step(cls: Any) -> None:
    """B5: trainers step from worker threads; gradient mode is a thing of each thread."""
    params = random_params(SHAPES)
    opt = cls(params)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            train(opt, params, 2)
        except BaseException as error:  # noqa: BLE001 - carried to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert_same_params(params, _trained(cls))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_class
def test_a_compiled_training_step_gives_the_same_bits(cls: Any) -> None:
    """B5: `torch.compile` of the whole training step leaves the optimizer's step out of the graph."""
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(90, 60)
        opt = cls(model.parameters())

        def training_step(x: Tensor, model: nn.Module = model, opt: torch.optim.Optimizer = opt) -> None:
            model(x).square().sum().backward()
            opt.step()
            opt.zero_grad()

        run = torch.compile(training_step, backend="eager") if compiled else training_step
        for _ in range(3):
            run(torch.linspace(-1, 1, 180).view(2, 90))
        results.append(list(model.parameters()))
    assert_same_params(*results)


# B6: gradient scaling.


@each_class
def test_a_grad_scaler_skips_the_step_on_infinity(cls: Any) -> None:
    """B6: without `_step_supports_amp_scaling` the scaler unscales and skips by itself, and clipping is allowed."""
    params = random_params(SHAPES)
    opt = cls(params)
    assert not hasattr(opt, "_step_supports_amp_scaling")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in params]
    scaler.scale(sum((p.sum() for p in params), torch.zeros(()))).backward()
    assert params[0].grad is not None
    params[0].grad[0, 0] = float("inf")
    scaler.step(opt)
    scaler.update()
    assert_same_params(params, before)
    assert not opt.state
    opt.zero_grad()
    scaler.scale(sum((p.sum() for p in params), torch.zeros(()))).backward()
    scaler.step(opt)
    scaler.update()
    assert int(opt.state[params[0]]["step"]) == 1


@each_class
def test_a_tensor_is_read_once_a_step_however_many_parameters_and_steps_there_are(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each reading waits for the GPU."""
    params = random_params([(3, 4)] * 20)
    lr = torch.tensor(1e-3)
    opt = cls([{"params": params[:10]}, {"params": params[10:]}], lr=lr)
    for count in (5, 12, 20):  # parameters at different steps, so several rows of scalars
        train(opt, params[:count], 1)
        opt.zero_grad()
    assert len({float(opt.state[param]["step"]) for param in params}) == 3
    read: list[Tensor] = []
    item = Tensor.item

    def counted(tensor: Tensor) -> Any:
        if tensor is lr:
            read.append(tensor)
        return item(tensor)

    monkeypatch.setattr(Tensor, "item", counted)
    train(opt, params, 1)
    assert len(read) == 1


# B7: parameter objects replaced in the groups.


@each_class
@pytest.mark.parametrize("steps_before", [0, 2])
def test_replaced_parameter_objects_are_trained_and_old_state_is_released(cls: Any, steps_before: int) -> None:
    """B7: FSDP2 swaps the objects in `group["params"]`, before the first step and later."""
    params = random_params(SHAPES)
    opt = cls(params)
    train(opt, params, steps_before)
    fresh = random_params(SHAPES, seed=9)
    opt.param_groups[0]["params"][:] = fresh
    expected = twins(fresh, 1)[0]
    train(opt, fresh, range(10, 12))
    train(cls(expected), expected, range(10, 12))
    assert_same_params(fresh, expected)
    assert set(opt.state) == set(fresh)


@each_bits
def test_replacing_parameters_again_and_again_does_not_grow(cls: Any) -> None:
    """B7: pages of parameters that are gone are used again."""
    opt = cls(random_params(SHAPES))
    pages = []
    for round_ in range(6):
        opt.param_groups[0]["params"][:] = params = random_params(SHAPES, seed=round_)
        train(opt, params, 1)
        pages.append(opt.memory_stats().pages)
    assert max(pages[1:]) == pages[1]
    assert pages[-1] <= 2 * pages[0]


@each_class
def test_one_parameter_may_be_replaced_while_others_keep_their_state(cls: Any) -> None:
    """B7: the state of an object that stays is not started over."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours), cls(theirs)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    fresh = Parameter(torch.zeros(4, 1030))
    opt.param_groups[0]["params"][1] = fresh
    changed = [ours[0], fresh, ours[2]]
    train(opt, changed, range(2, 4))
    train(plain, theirs, range(2, 4))
    assert_same_params([ours[0], ours[2]], [theirs[0], theirs[2]])
    assert [int(opt.state[p]["step"]) for p in changed] == [4, 2, 4]


# B8: torch.distributed's way to make state.


@each_class
def test_a_first_step_of_lr_zero_on_zero_gradients_only_allocates(cls: Any) -> None:
    """B8: state exists afterwards, all zero, with `step` still at 0, and training goes on as if nothing had been."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours), cls(theirs)
    before = [p.detach().clone() for p in ours]
    opt.param_groups[0]["lr"] = 0.0
    give(ours, [torch.zeros_like(p) for p in ours])
    opt.step()
    opt.param_groups[0]["lr"] = 1e-3
    assert_same_params(ours, before)
    for p in ours:
        assert int(opt.state[p]["step"]) == 0
        assert not opt.state[p]["exp_avg"].any()
    train(opt, ours, 3)
    train(plain, theirs, 3)
    assert_same_params(ours, theirs)
    assert_same_state(opt.state_dict(), plain.state_dict())


# B9: an optimizer for each parameter, stepped during backward.


@needs_proc
@each_bits
def test_hundreds_of_optimizers_in_backward_share_one_budget(cls: Any, tmp_path: Path) -> None:
    """B9: `register_post_accumulate_grad_hook` with one optimizer a parameter: one budget, one file, the same bits."""
    paging: dict[str, Any] = {
        "page_size": "64KiB",
        "prefetch_depth": 1,
        "max_host_memory": smallest_budget("64KiB", 1),
        "spill_dir": tmp_path,
    }
    torch.manual_seed(0)
    layers = [nn.Linear(72, 72, bias=False) for _ in range(200)]
    twin = nn.Sequential(*[nn.Linear(72, 72, bias=False) for _ in range(200)])
    for mine, other in zip(layers, twin, strict=True):
        other.load_state_dict(mine.state_dict())
    opts = {layer.weight: cls([layer.weight], **paging) for layer in layers}

    def step_and_free(param: Parameter) -> None:
        opts[param].step()
        opts[param].zero_grad()

    for layer in layers:
        layer.weight.register_post_accumulate_grad_hook(step_and_free)
    whole = cls(twin.parameters())
    x = torch.randn(4, 72)
    for _ in range(2):
        nn.Sequential(*layers)(x).square().sum().backward()
        twin(x).square().sum().backward()
        whole.step()
        whole.zero_grad()
    assert_same_params([layer.weight for layer in layers], list(twin.parameters()))
    assert len(open_files_in(tmp_path)) <= 2
    stats = [opt.memory_stats() for opt in opts.values()]
    assert {s.budget_bytes for s in stats} == {paging["max_host_memory"]}
    assert max(s.resident_pages for s in stats) * 65_536 <= paging["max_host_memory"]
