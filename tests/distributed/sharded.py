"""A model with every kind of parameter that shards badly, trained on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import pagedopt

PAGE = 64 << 10
PAGED = {"page_size": PAGE, "max_host_memory": PAGE, "prefetch_depth": 0}
"""One frame of the smallest page: less than the state of a third of the model, so that every rank pages."""

WHOLE_BLOCKS = ("up.weight", "up.bias", "down.weight", "shrink.weight", "head.weight")
"""The parameters that every cut of dimension 0 leaves in whole blocks, or that are in 32 bits."""

IN_8_BITS = ("up.weight", "down.weight", "shrink.weight", "widen.weight", "scale")


class Net(nn.Module):
    """133 rows are a multiple of no number of processes here and no row is one of 256 values; the head has one row."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(600, 133)
        self.down = nn.Linear(133, 600, bias=False)
        self.shrink = nn.Linear(600, 16, bias=False)  # with the next, LoRA's pair
        self.widen = nn.Linear(16, 600, bias=False)
        self.head = nn.Linear(600, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(5003))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        hidden = x + self.down(torch.tanh(self.up(x))) + self.widen(self.shrink(x))
        return self.head(hidden).square().mean() + (self.scale * noise).square().mean()


def new_net() -> Net:
    """Return the model with the same values every time."""
    torch.manual_seed(7)
    return Net()


def sharded_net(mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Return the model with FSDP2's shards over all processes."""
    net = new_net()
    fully_shard(net, mesh=mesh or init_device_mesh("cpu", (dist.get_world_size(),)), **options)
    return net


def paged_8bit(model: nn.Module, *, flat_bits: int = 8, **options: Any) -> pagedopt.PagedAdamW8bit:
    """Return an optimizer that has to page; `flat_bits` are those of the parameters whose blocks a shard may cut."""
    named = dict(model.named_parameters())
    groups = [
        {"params": [param for name, param in named.items() if name in WHOLE_BLOCKS]},
        {"params": [param for name, param in named.items() if name not in WHOLE_BLOCKS], "optim_bits": flat_bits},
    ]
    return pagedopt.PagedAdamW8bit(groups, lr=1e-2, weight_decay=0.1, **PAGED, **options)  # type: ignore[arg-type]


def batches(first: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same batches on every rank: averaging equal gradients of two ranks is exact."""
    for seed in range(first, stop):
        generator = torch.Generator().manual_seed(seed)
        yield torch.randn(8, 600, generator=generator), torch.randn(5003, generator=generator)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    first: int,
    stop: int,
    *,
    before_step: Callable[[nn.Module], object] | None = None,
) -> None:
    """Make steps `first` to `stop`, half open."""
    for x, noise in batches(first, stop):
        optimizer.zero_grad()
        model(x, noise).backward()
        if before_step is not None:
            before_step(model)
        optimizer.step()


def whole_params(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters put together, on every rank."""
    return {name: whole(param).clone() for name, param in model.named_parameters()}


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's state put together, by name, on every rank."""
    options = StateDictOptions(full_state_dict=True)
    state: dict[str, dict[str, Tensor]] = get_optimizer_state_dict(model, optimizer, options=options)["state"]  # type: ignore[assignment]
    return state


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor put together."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach()


def flat(state: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return state with one key a tensor."""
    return {f"{name}.{key}": value for name, entry in state.items() for key, value in entry.items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Two dicts have the same keys, element types and bits."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), f"{name}: {(value.float() - right[name].float()).abs().max()}"
