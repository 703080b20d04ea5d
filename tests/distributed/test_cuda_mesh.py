"""State of parameters on a mesh of accelerators: it is paged there too, and saving or loading never brings all
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pagedopt import PagedAdamW8bit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.framework("torch.distributed", "FSDP2: `fully_shard(model)`, then `PagedAdamW8bit(...)`"),
]

WIDTH, LAYERS = 1024, 16
BUDGET = 5 << 20


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


def trained(mesh: object) -> tuple[nn.Module, PagedAdamW8bit]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).cuda()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = PagedAdamW8bit(model.parameters(), page_size="1MiB", max_gpu_memory=BUDGET)
    model(torch.randn(4, WIDTH, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


STATE = 2 * LAYERS * WIDTH * WIDTH
"""Bytes of codes."""


def through_a_checkpoint(model: nn.Module, optimizer: PagedAdamW8bit, folder: Path) -> None:
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": state}, checkpoint_id=folder)
    dcp.load({"optimizer": state}, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, state)


def offloaded(**options: bool) -> Callable[[nn.Module, PagedAdamW8bit, Path], None]:
    def there_and_back(model: nn.Module, optimizer: PagedAdamW8bit, folder: Path) -> None:
        got = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True, **options))
        is_full = options.get("full_state_dict", False)
        back = {**options, "broadcast_from_rank0": True} if is_full else options
        set_optimizer_state_dict(model, optimizer, got, options=StateDictOptions(**back))

    return there_and_back


WAYS = {
    "checkpoint": through_a_checkpoint,
    "sharded": offloaded(),
    "flattened": offloaded(flatten_optimizer_state_dict=True),
    "full": offloaded(full_state_dict=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_state_is_never_all_on_the_accelerator(mesh: object, tmp_path: Path, way: str) -> None:
    model, optimizer = trained(mesh)
    before = {name: dict(optimizer.state[param]) for name, param in model.named_parameters()}
    shown = next(iter(before.values()))["exp_avg"]
    assert isinstance(shown, DTensor)
    assert shown.to_local().device.type == "cpu"
    torch.cuda.synchronize()
    start = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    WAYS[way](model, optimizer, tmp_path)
    assert torch.cuda.max_memory_allocated() - start < STATE // 4
    for name, param in model.named_parameters():
        for key, value in optimizer.state[param].items():
            assert torch.equal(local(value), local(before[name][key])), f"{name} {key}"


def local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
