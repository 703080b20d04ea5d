"""Paged state on a real GPU: the bits of resident state, no wait for the device, memory as promised.

What the simulated accelerator cannot show. `make test-gpu` runs these, with the kernel tests, and nothing else.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pagedopt
from pagedopt import AdamW, PagedAdamW, Pager, fetch_in_backward, step_in_backward
from pagedopt.tiers.host import HostTier
from pagedopt.tiers.split import SplitTier

pytestmark = pytest.mark.gpu

PAGE = 1 << 20
WORKING_SET = 5 * PAGE
MIB = 1 << 20

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
SHAPES = ((1024, 3000), (2048, 512), (17,), (700, 301), (4096,))

FORMATS: list[dict[str, Any]] = [
    {"optim_bits": 32},
    {"optim_bits": 32, "amsgrad": True},
    {"optim_bits": 8},
    {"optim_bits": 8, "block_wise": False},
]


def module() -> ModuleType:
    return torch.get_device_module(DEVICE)


def new_params(dtype: torch.dtype = torch.float32, device: torch.device = DEVICE) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in SHAPES]


def new_gradients(params: list[nn.Parameter], steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        [torch.randn(param.shape, generator=generator).to(param.device, param.dtype) for param in params]
        for _ in range(steps)
    ]


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for grads in gradients:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()


def assert_same(left: torch.optim.Optimizer, right: torch.optim.Optimizer) -> None:
    for one, other in zip(params_of(left), params_of(right), strict=True):
        assert torch.equal(one, other)
        for name, value in left.state[one].items():
            assert torch.equal(value.cpu(), right.state[other][name].cpu()), name


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Everything that makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", FORMATS, ids=str)
@pytest.mark.parametrize("home", ["host", "disk", "both"])
def test_paging_never_changes_a_bit(options: dict[str, Any], dtype: torch.dtype, home: str, tmp_path: Path) -> None:
    host = {"host": 0, "disk": 2 * PAGE, "both": 8 * PAGE}[home]
    resident_params, paged_params = new_params(dtype), new_params(dtype)
    resident = AdamW(resident_params, **options)
    paged = PagedAdamW(
        paged_params, page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=host, spill_dir=tmp_path, **options
    )
    gradients = new_gradients(resident_params, 6)
    train(resident, resident_params, gradients)
    train(paged, paged_params, gradients)
    stats = paged.paging_stats()
    assert stats.bytes_read["host" if home == "host" else "disk"] > 0 or options["optim_bits"] == 8
    assert_same(resident, paged)


def test_streams_that_take_turns_never_change_a_bit() -> None:
    """The streams order themselves by the frames alone; parameters and gradients are ordered by their user."""
    resident_params, paged_params = new_params(), new_params()
    resident = AdamW(resident_params)
    paged = PagedAdamW(paged_params, page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    gradients = new_gradients(resident_params, 12)
    train(resident, resident_params, gradients)
    streams = [module().Stream(device=DEVICE) for _ in range(3)]
    before = module().current_stream(DEVICE)
    for step, grads in enumerate(gradients):
        stream = streams[step % 3]
        stream.wait_stream(before)
        with module().stream(stream):
            train(paged, paged_params, [grads])
        before = stream
    module().current_stream(DEVICE).wait_stream(before)
    assert_same(resident, paged)


def test_work_on_the_current_stream_comes_before_and_after_the_step() -> None:
    """A long computation makes the gradients, and another uses the parameters: neither is waited for by the host."""
    resident_params, paged_params = new_params(), new_params()
    resident = AdamW(resident_params)
    paged = PagedAdamW(paged_params, page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    busy = torch.randn(4096, 4096, device=DEVICE)
    outcomes = []
    for optimizer, params in ((resident, resident_params), (paged, paged_params)):
        sums = []
        for grads in new_gradients(params, 4):
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)
            train(optimizer, params, [[grad + busy[0, 0] * 0 for grad in grads]])
            sums.append(torch.stack([param.double().sum() for param in params]))
        outcomes.append(torch.stack(sums))
    assert torch.equal(*outcomes)
    assert_same(resident, paged)


GPU_TOLERANCE = 1e-6
"""Absolute, on values of the size of one: before Triton 3.6 division and root flush the smallest floats to zero."""


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_a_gpu_computes_what_a_cpu_computes(options: dict[str, Any]) -> None:
    gpu_params, cpu_params = new_params(), new_params(device=torch.device("cpu"))
    gradients = new_gradients(cpu_params, 5)
    train(AdamW(cpu_params, **options), cpu_params, gradients)
    train(AdamW(gpu_params, **options), gpu_params, [[grad.to(DEVICE) for grad in grads] for grads in gradients])
    for left, right in zip(gpu_params, cpu_params, strict=True):
        assert torch.allclose(left.cpu(), right, rtol=0, atol=GPU_TOLERANCE)


def test_state_saved_on_a_gpu_goes_on_elsewhere(tmp_path: Path) -> None:
    params, other_params = new_params(), new_params()
    paged = PagedAdamW(params, page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    gradients = new_gradients(params, 4)
    train(paged, params, gradients[:2])
    pagedopt.save(paged, tmp_path / "checkpoint")
    resident = AdamW(other_params)
    with torch.no_grad():
        for param, other in zip(params, other_params, strict=True):
            other.copy_(param)
    pagedopt.load(resident, tmp_path / "checkpoint")
    train(paged, params, gradients[2:])
    train(resident, other_params, gradients[2:])
    assert_same(paged, resident)


# -- no waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA tells when the host waits")
@pytest.mark.parametrize("options", FORMATS, ids=str)
@pytest.mark.parametrize("budget", [WORKING_SET, 0, None])
def test_a_step_never_waits_for_the_device(options: dict[str, Any], budget: int | None) -> None:
    params = new_params()
    optimizer = PagedAdamW(params, page_size=PAGE, max_gpu_memory=budget, max_host_memory=0, **options)
    gradients = new_gradients(params, 5)
    train(optimizer, params, gradients[:2])
    with no_waiting():
        train(optimizer, params, gradients[2:])


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA tells when the host waits")
def test_a_learning_rate_on_the_gpu_is_waited_for_once_a_step() -> None:
    params = new_params()
    optimizer = AdamW(params, lr=torch.tensor(1e-3, device=DEVICE))
    gradients = new_gradients(params, 3)
    train(optimizer, params, gradients[:2])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(optimizer, params, gradients[2:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in said if "synchronizing" in str(one.message)]) == 1


def test_a_step_returns_while_the_device_still_works() -> None:
    params = new_params()
    optimizer = PagedAdamW(params, page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    train(optimizer, params, new_gradients(params, 2))
    busy = torch.randn(8192, 8192, device=DEVICE)
    gradients = new_gradients(params, 1)
    module().synchronize(DEVICE)
    for _ in range(30):
        busy = (busy @ busy).clamp(-1, 1)
    train(optimizer, params, gradients)
    end = module().Event()
    end.record()
    assert not end.query()
    module().synchronize(DEVICE)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_frames_are_torch_memory_within_the_budget_and_deletion_frees_everything() -> None:
    gc.collect()
    before = module().memory_allocated(DEVICE)
    params = new_params()
    gradients = new_gradients(params, 3)
    optimizer = PagedAdamW(params, page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    with_model = module().memory_allocated(DEVICE)
    module().reset_peak_memory_stats(DEVICE)
    train(optimizer, params, gradients)
    tables = 4 * MIB  # of segments, of the codec, of scalars; and what norms and sums need in passing
    assert WORKING_SET <= module().max_memory_allocated(DEVICE) - with_model <= WORKING_SET + tables
    tier = tier_of(optimizer)
    assert tier.usage.host_nbytes > WORKING_SET
    del optimizer, params, gradients, tier
    gc.collect()
    assert module().memory_allocated(DEVICE) - before < tables


def tier_of(optimizer: PagedAdamW) -> SplitTier:
    (pager,) = [pager for device, pager in optimizer._store.pager.devices().items() if device.type == DEVICE.type]
    tier = pager._residency.tier
    assert isinstance(tier, SplitTier)
    return tier


def test_pages_in_ram_are_pinned_in_a_few_slabs_and_charged() -> None:
    params = new_params()
    pager = Pager(page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory="1GiB")
    optimizer = PagedAdamW(params, pager=pager)
    train(optimizer, params, new_gradients(params, 2))
    host = tier_of(optimizer)._tiers[0]
    assert isinstance(host, HostTier)
    slabs = host._slabs._slabs
    assert len(slabs) < 12
    memories = [slab.memory for slab in slabs if slab.memory is not None]
    assert memories
    assert all(memory.is_pinned() for memory in memories)
    assert pager._host.charged == sum(slab.nbytes for slab in slabs)
    optimizer.close()
    assert pager._host.charged == 0


def test_everything_resident_makes_no_copy() -> None:
    params = new_params()
    optimizer = PagedAdamW(params, max_gpu_memory=0)
    train(optimizer, params, new_gradients(params, 3))
    stats = optimizer.paging_stats()
    assert sum(stats.bytes_read.values()) == sum(stats.bytes_written.values()) == 0


@pytest.mark.skipif(DEVICE.type != "cuda", reason="written for CUDA")
def test_a_spike_that_was_seen_fits_beside_state_from_then_on() -> None:
    gc.collect()
    module().empty_cache()
    module().reset_peak_memory_stats(DEVICE)
    capacity = module().memory_reserved(DEVICE) + module().mem_get_info(DEVICE)[0]
    params = [nn.Parameter(torch.randn(64 << 20, device=DEVICE))]  # 512 MiB of state
    state = 512 * MIB
    optimizer = PagedAdamW(params, max_host_memory=0)
    gradients = new_gradients_of(params, 4)
    train(optimizer, params, gradients[:1])
    resident = module().memory_allocated(DEVICE)
    spike = capacity - resident - 256 * MIB
    torch.empty(spike, dtype=torch.uint8, device=DEVICE)
    module().empty_cache()
    train(optimizer, params, gradients[1:2])
    assert resident - module().memory_allocated(DEVICE) > state // 2
    torch.empty(spike + state // 4, dtype=torch.uint8, device=DEVICE)
    module().empty_cache()
    train(optimizer, params, gradients[2:])
    optimizer.close()


def new_gradients_of(params: list[nn.Parameter], steps: int) -> list[list[Tensor]]:
    return [[torch.randn_like(param) for param in params] for _ in range(steps)]


@pytest.mark.skipif(not torch.accelerator.is_available() or torch.accelerator.device_count() < 2, reason="needs 2 GPUs")
def test_each_gpu_has_frames_of_its_own() -> None:
    devices = [torch.device(DEVICE.type, index) for index in range(2)]
    models = [new_params(device=device) for device in devices]
    twins = [new_params(device=device) for device in devices]
    paged = PagedAdamW(
        [p for model in models for p in model], page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0
    )
    resident = AdamW([p for model in twins for p in model])
    for optimizer, parts in ((paged, models), (resident, twins)):
        params = [p for part in parts for p in part]
        train(optimizer, params, new_gradients(params, 4))
    assert_same(resident, paged)
    frames = {device: pager.memory.frame_nbytes for device, pager in paged._store.pager.devices().items()}
    assert frames == dict.fromkeys(devices, WORKING_SET)


# -- training ---------------------------------------------------------------------------------------------------------


def new_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 8)).to(
        DEVICE
    )


def backward(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    (model(torch.randn(16, 512, generator=generator).to(DEVICE)).square().mean() * scale).backward()


def test_stepping_and_fetching_in_backward_give_the_bits_of_an_ordinary_step() -> None:
    plain_model, model = new_model(), new_model()
    plain = AdamW(plain_model.parameters())
    optimizer = PagedAdamW(model.parameters(), page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    with step_in_backward(optimizer), fetch_in_backward(optimizer):
        for step in range(4):
            backward(plain_model, step)
            plain.step()
            plain.zero_grad()
            backward(model, step)
            assert all(param.grad is None for param in model.parameters())
    assert_same(plain, optimizer)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="written for CUDA")
def test_a_grad_scaler_skips_the_step_and_no_state_is_touched() -> None:
    model = new_model()
    optimizer = PagedAdamW(model.parameters(), page_size=PAGE, max_gpu_memory=WORKING_SET, max_host_memory=0)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=4.0)
    for infinite in (False, True, False):
        params = [param.detach().clone() for param in model.parameters()]
        steps = [int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in model.parameters()]
        state = {i: optimizer.state[p]["exp_avg"].clone() for i, p in enumerate(model.parameters()) if steps[i]}
        scaler.scale(torch.ones((), device=DEVICE))
        backward(model, 1, float(scaler.get_scale()))
        if infinite:
            next(model.parameters()).grad.view(-1)[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        for index, (param, before) in enumerate(zip(model.parameters(), params, strict=True)):
            assert torch.equal(param, before) is infinite
            assert int(optimizer.state[param]["step"]) == steps[index] + (not infinite)
            if infinite:
                assert torch.equal(optimizer.state[param]["exp_avg"], state[index])
