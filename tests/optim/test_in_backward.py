"""Stepping and fetching during backward: the bits of an ordinary step, and no gradient longer than it must be there."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pagedopt import AdamW, PagedAdamW, Pager, fetch_in_backward, step_in_backward
from pagedopt.kernels.select import kernel_for
from pagedopt.optim import base
from pagedopt.paging.pager import accelerator_pager
from simulated_accelerator import SimulatedAccelerator, SimulatedKernel

CPU = torch.device("cpu")
PAGE = 64 << 10


def new_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4))


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(step))


def backward(model: nn.Module, step: int) -> None:
    model(batch(step)).square().mean().backward()


OPTIONS: list[dict[str, Any]] = [
    {"optim_bits": 32},
    {"optim_bits": 8, "min_8bit_size": 0},
    {"optim_bits": 8, "min_8bit_size": 0, "block_wise": False},
    {"optim_bits": 32, "percentile_clipping": 50},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_stepping_in_backward_gives_the_bits_of_an_ordinary_step(options: dict[str, Any], tmp_path: Path) -> None:
    plain_model, model = new_model(), new_model()
    plain = AdamW(plain_model.parameters(), **options)
    budget = {"page_size": PAGE, "max_host_memory": 5 * PAGE, "spill_dir": tmp_path}
    optimizer = PagedAdamW(model.parameters(), **budget, **options)
    with step_in_backward(optimizer):
        for step in range(4):
            backward(plain_model, step)
            plain.step()
            plain.zero_grad()
            backward(model, step)
            assert all(param.grad is None for param in model.parameters())
            optimizer.step()
    same(plain_model, model)
    for left, right in zip(plain_model.parameters(), model.parameters(), strict=True):
        for name, value in plain.state[left].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state[right][name]))


def test_a_gradient_is_gone_before_the_next_one_comes() -> None:
    model = new_model()
    alive: list[int] = []
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(param.grad is not None for param in model.parameters()))
        )
    optimizer = PagedAdamW(model.parameters())
    step_in_backward(optimizer)
    backward(model, 0)
    optimizer.step()
    assert alive == [1] * 6


def test_hooks_go_when_they_are_removed_and_may_be_removed_twice() -> None:
    model = new_model()
    optimizer = PagedAdamW(model.parameters())
    stepping = step_in_backward(optimizer)
    stepping.remove()
    stepping.remove()
    backward(model, 0)
    assert all(param.grad is not None for param in model.parameters())


def test_a_model_and_its_optimizer_that_are_deleted_are_gone_with_their_hooks() -> None:
    model = new_model()
    optimizer = PagedAdamW(model.parameters())
    step_in_backward(optimizer)
    fetch_in_backward(optimizer)
    backward(model, 0)
    gone = weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert gone() is None


def test_an_optimizer_that_is_gone_stops_backward_and_not_silently_the_training() -> None:
    model = new_model()
    hooks = step_in_backward(PagedAdamW(model.parameters()))
    with pytest.raises(RuntimeError, match="the optimizer that steps during backward is gone; keep a reference"):
        backward(model, 0)
    hooks.remove()
    backward(model, 0)


def test_the_learning_rate_of_the_moment_is_used() -> None:
    plain_model, model = new_model(), new_model()
    plain, optimizer = AdamW(plain_model.parameters()), PagedAdamW(model.parameters())
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (plain, optimizer)]
    with step_in_backward(optimizer):
        for step in range(3):
            for each, net, scheduler in zip((plain, optimizer), (plain_model, model), schedulers, strict=True):
                backward(net, step)
                each.step()
                each.zero_grad()
                scheduler.step()
    same(plain_model, model)


def test_grad_scaler_refuses_what_it_cannot_unscale() -> None:
    model = new_model()
    optimizer = PagedAdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    with step_in_backward(optimizer):
        scaler.scale(model(batch(0)).square().mean()).backward()
        with pytest.raises(AssertionError, match="No inf checks were recorded"):
            scaler.step(optimizer)


def test_an_optimizer_without_gradients_is_refused() -> None:
    optimizer = PagedAdamW([nn.Parameter(torch.ones(3), requires_grad=False)])
    for what in (step_in_backward, fetch_in_backward):
        with pytest.raises(ValueError, match=f"{what.__name__} needs a parameter that requires a gradient"):
            what(optimizer)


def test_fetching_in_backward_moves_the_first_pages_before_the_step_and_changes_no_bit() -> None:
    plain_model, model = new_model(), new_model()
    plain = AdamW(plain_model.parameters())
    accelerator = SimulatedAccelerator()
    pager = Pager(page_size=PAGE, max_gpu_memory=5 * PAGE, max_host_memory=0)
    device_pager = accelerator_pager(pager.config, CPU, pager._host, accelerator)
    device_pager._residency.frames._allocate = accelerator.allocate
    pager._on[CPU] = device_pager
    optimizer = PagedAdamW(model.parameters(), pager=pager)
    fetch_in_backward(optimizer)
    fetched: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for step in range(4):
            backward(plain_model, step)
            patch.setattr(base, "kernel_for", kernel_for)
            plain.step()
            plain.zero_grad()
            if step:
                with accelerator, device_pager._lock:
                    device_pager._residency.trim(0)
            patch.setattr(base, "kernel_for", lambda device: SimulatedKernel(kernel_for(device), accelerator))
            before = accelerator.num_up
            backward(model, step)
            fetched.append(accelerator.num_up - before)
            with accelerator:
                optimizer.step()
                accelerator.synchronize()
            optimizer.zero_grad()
    assert fetched == [0, 3, 3, 3]
    same(plain_model, model)
    with accelerator:
        optimizer.close()


def same(left: nn.Module, right: nn.Module) -> None:
    for one, other in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(one, other)
