"""The optimizers over a simulated accelerator: the bits of resident state, whatever the streams, budgets and homes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedopt import AdamW, PagedAdamW, Pager
from pagedopt.kernels.select import kernel_for
from pagedopt.optim import base
from pagedopt.paging.automatic import Reading
from pagedopt.paging.pager import accelerator_pager
from simulated_accelerator import SimulatedAccelerator, SimulatedKernel

CPU = torch.device("cpu")
SHAPES = ((301, 256), (64, 64), (7,), (40_000,), (130, 300), (1,))
PAGE = 64 << 10


def new_params(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(params: list[torch.nn.Parameter], step: int, present: int) -> None:
    """New tensors at every step: the device may still be reading the last ones."""
    generator = torch.Generator().manual_seed(step)
    for index, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = grad if present >> index & 1 else None


def simulated(accelerator: SimulatedAccelerator, pager: Pager) -> Pager:
    """Return `pager` with the CPU's pages on the simulated accelerator, whose memory was full once."""
    device_pager = accelerator_pager(pager.config, CPU, pager._host, accelerator, lambda: Reading(1 << 30, 1 << 30))
    device_pager._residency.frames._allocate = accelerator.allocate
    pager._on[CPU] = device_pager
    return pager


@settings(max_examples=20)
@given(
    bits=st.sampled_from((8, 32)),
    block_wise=st.booleans(),
    frames=st.integers(0, 4),
    depth=st.integers(0, 2),
    host_pages=st.sampled_from((0, 6)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 2**32),
)
def test_streams_never_change_a_bit(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    block_wise: bool,
    frames: int,
    depth: int,
    host_pages: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = random.Random(seed)
    accelerator = SimulatedAccelerator(seed)
    pager = Pager(
        page_size=PAGE,
        max_gpu_memory=(1 + 2 * depth + frames) * PAGE,
        max_host_memory=host_pages * PAGE,
        prefetch_depth=depth,
        spill_dir=tmp_path_factory.mktemp("spill"),
    )
    resident_params, paged_params = new_params(dtype), new_params(dtype)
    options = {"optim_bits": bits, "block_wise": block_wise}
    resident = AdamW(resident_params, **options)
    paged = PagedAdamW(paged_params, pager=simulated(accelerator, pager), **options)
    train_both(accelerator, (resident, resident_params), (paged, paged_params), rng)


def test_no_frames_between_steps_never_change_a_bit(tmp_path: Path) -> None:
    accelerator = SimulatedAccelerator(5)
    pager = Pager(page_size=PAGE, max_host_memory=3 * PAGE, prefetch_depth=1, spill_dir=tmp_path)
    resident_params, paged_params = new_params(torch.float32), new_params(torch.float32)
    resident = AdamW(resident_params)
    paged = PagedAdamW(paged_params, pager=simulated(accelerator, pager))
    train_both(accelerator, (resident, resident_params), (paged, paged_params), random.Random(5))
    assert accelerator.num_up
    assert accelerator.num_down


def train_both(
    accelerator: SimulatedAccelerator,
    resident: tuple[AdamW, list[torch.nn.Parameter]],
    paged: tuple[PagedAdamW, list[torch.nn.Parameter]],
    rng: random.Random,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for step in range(4):
            present = rng.randrange(1, 1 << len(SHAPES)) if step else (1 << len(SHAPES)) - 1
            for optimizer, params in (resident, paged):
                give_gradients(params, step, present)
                if optimizer is resident[0]:
                    patch.setattr(base, "kernel_for", kernel_for)
                    optimizer.step()
                    continue
                patch.setattr(base, "kernel_for", lambda device: SimulatedKernel(kernel_for(device), accelerator))
                with accelerator, accelerator.on(rng.choice((accelerator.main, accelerator.side))):
                    optimizer.step()
        with accelerator:
            accelerator.synchronize()
            state = paged[0].state_dict()["state"]
            for stream in (accelerator.main, accelerator.side):
                accelerator.mark(stream).synchronize()
            paged[0].close()
    expected = resident[0].state_dict()["state"]
    for left, right in zip(resident[1], paged[1], strict=True):
        assert torch.equal(left, right)
    for key, entry in expected.items():
        for name, value in entry.items():
            assert (
                torch.equal(value, state[key][name]) if isinstance(value, torch.Tensor) else value == state[key][name]
            )
