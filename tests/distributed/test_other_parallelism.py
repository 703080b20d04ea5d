"""The other ways to train on many processes: FSDP1's flat parameters, DDP, ZeRO and tensor parallel layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from cluster import Cluster
from sharded import PAGED, assert_same, batches, flat, new_net, paged_8bit, train, whole, whole_params
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp1
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pagedopt import PagedAdamW8bit
from pagedopt.codecs.base import StateFormat
from pagedopt.optim.parts import local_tensor

STEPS = 4

ClusterOf = Callable[[int], Cluster]


def _fsdp1(*, use_orig_params: bool) -> tuple[nn.Module, PagedAdamW8bit]:
    model = Fsdp1(new_net(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    return model, PagedAdamW8bit(model.parameters(), lr=1e-2, **PAGED)  # type: ignore[arg-type]


def _kind(model: nn.Module, is_full: bool) -> AbstractContextManager[object]:
    if not is_full:
        return Fsdp1.state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
    return Fsdp1.state_dict_type(
        model,
        StateDictType.FULL_STATE_DICT,
        FullStateDictConfig(offload_to_cpu=False),
        FullOptimStateDictConfig(offload_to_cpu=False),  # with it, on a CPU, torch puts all state into one buffer
    )


def _fsdp1_interrupted(use_orig_params: bool, is_full: bool) -> tuple[list[str], list[dict[str, Tensor]]]:
    model, optimizer = _fsdp1(use_orig_params=use_orig_params)
    train(model, optimizer, 0, STEPS)
    formats = sorted({record.state_format.name for record in optimizer._store.records.values()})
    resumed, resumed_optimizer = _fsdp1(use_orig_params=use_orig_params)
    with _kind(model, is_full):
        params, state = deepcopy(model.state_dict()), Fsdp1.optim_state_dict(model, optimizer)
    with _kind(resumed, is_full):
        resumed.load_state_dict(params)
        resumed_optimizer.load_state_dict(Fsdp1.optim_state_dict_to_load(resumed, resumed_optimizer, state))
    outcome = []
    for m, o in ((model, optimizer), (resumed, resumed_optimizer)):
        train(m, o, STEPS, 2 * STEPS)
        with _kind(m, True):
            outcome.append({**deepcopy(m.state_dict()), **flat(Fsdp1.optim_state_dict(m, o)["state"])})
    return formats, outcome


@pytest.mark.framework(
    "torch.distributed", "FSDP1: `FullyShardedDataParallel(model)`, with flat or original parameters"
)
@pytest.mark.parametrize("is_full", [True, False], ids=["full", "sharded"])
@pytest.mark.parametrize("use_orig_params", [False, True], ids=["flat parameters", "original parameters"])
def test_fsdp1_trains_in_8_bits_and_resumes_to_the_bit(pair: Cluster, use_orig_params: bool, is_full: bool) -> None:
    for formats, (unbroken, resumed) in pair.run(_fsdp1_interrupted, use_orig_params, is_full):
        assert StateFormat.BLOCKWISE8.name in formats
        assert unbroken["up.weight.exp_avg"].shape == (133, 600)
        assert not torch.equal(unbroken["up.weight.exp_avg"], unbroken["up.weight.exp_avg_sq"])
        assert_same(unbroken, resumed)


def _shown_alone() -> str:
    """With one process, FSDP1 hands an original parameter's state on as it is."""
    model, optimizer = _fsdp1(use_orig_params=True)
    train(model, optimizer, 0, 1)
    with _kind(model, True):
        return str(Fsdp1.optim_state_dict(model, optimizer)["state"]["up.weight"]["exp_avg"].dtype)


@pytest.mark.framework(
    "torch.distributed", "FSDP1: `FullyShardedDataParallel(model)`, with flat or original parameters"
)
def test_fsdp1_state_of_one_process_is_like_that_of_two(cluster_of: ClusterOf) -> None:
    assert cluster_of(1).run(_shown_alone) == ["torch.float32"]


def _flat_formats() -> str:
    """Half of this flat parameter is small enough for 32 bits."""
    model = Fsdp1(nn.Linear(100, 60), device_id=torch.device("cpu"))
    optimizer = PagedAdamW8bit(model.parameters())
    optimizer.init_state()
    (record,) = optimizer._store.records.values()
    return record.state_format.name


@pytest.mark.framework(
    "torch.distributed", "FSDP1: `FullyShardedDataParallel(model)`, with flat or original parameters"
)
def test_bits_of_a_flat_parameter_do_not_depend_on_the_number_of_processes(cluster_of: ClusterOf) -> None:
    assert {cluster_of(world).run(_flat_formats)[0] for world in (1, 2)} == {"BLOCKWISE8"}


def _beside_ddp(as_view: bool) -> list[dict[str, Tensor]]:
    """Each rank has its own half of a batch; one process has all of it."""
    ddp = DistributedDataParallel(new_net(), gradient_as_bucket_view=as_view)
    alone = new_net()
    optimizers = paged_8bit(ddp.module), paged_8bit(alone)
    for x, noise in batches(0, STEPS):
        for model, optimizer, part in ((ddp, optimizers[0], dist.get_rank()), (alone, optimizers[1], slice(None))):
            optimizer.zero_grad(set_to_none=not as_view)
            model(x.view(2, 4, 600)[part], noise).backward()
            if model is alone:
                for mine, averaged in zip(alone.parameters(), ddp.parameters(), strict=True):
                    torch.testing.assert_close(mine.grad, averaged.grad, rtol=1e-3, atol=1e-6)
                    mine.grad = averaged.grad.clone()
            optimizer.step()
    return [whole_params(model) for model in (ddp.module, alone)]


@pytest.mark.framework("torch.distributed", "`DistributedDataParallel(model, gradient_as_bucket_view=True)`")
@pytest.mark.parametrize("as_view", [False, True], ids=["own gradients", "gradient_as_bucket_view"])
def test_ddp_replicas_stay_equal_to_one_process(pair: Cluster, as_view: bool) -> None:
    first, second = pair.run(_beside_ddp, as_view)
    assert_same(first[0], first[1])
    assert_same(first[0], second[0])


def _zero_interrupted() -> list[dict[str, Tensor]]:
    """Return the parameters of one process, of ZeRO, and of ZeRO resumed from what rank 0 was sent."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def zero(model: nn.Module) -> ZeroRedundancyOptimizer:
        return ZeroRedundancyOptimizer(model.parameters(), PagedAdamW8bit, lr=1e-2, **PAGED)

    alone, model, resumed = new_net(), new_net(), new_net()
    reference, optimizer = PagedAdamW8bit(alone.parameters(), lr=1e-2, **PAGED), zero(model)  # type: ignore[arg-type]
    train(alone, reference, 0, STEPS)
    train(model, optimizer, 0, STEPS)
    optimizer.consolidate_state_dict(to=0)
    sent = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(sent, src=0)
    resumed.load_state_dict(model.state_dict())
    resumed_optimizer = zero(resumed)
    resumed_optimizer.load_state_dict(sent[0])
    outcome = []
    for m, o in ((alone, reference), (model, optimizer), (resumed, resumed_optimizer)):
        train(m, o, STEPS, 2 * STEPS)
        outcome.append(whole_params(m))
    return outcome


@pytest.mark.framework("torch.distributed", "`ZeroRedundancyOptimizer(params, PagedAdamW8bit, lr=...)`")
def test_zero_redundancy_optimizer_is_one_process_and_resumes_to_the_bit(pair: Cluster) -> None:
    for alone, zero, resumed in pair.run(_zero_interrupted):
        assert_same(alone, zero)
        assert_same(zero, resumed)


def _tensor_parallel(width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Step a weight whose rows are cut in two, and the same weight whole, with the same gradients."""
    mesh = init_device_mesh("cpu", (2,))
    weight = torch.randn(40, width)
    cut = nn.Parameter(distribute_tensor(weight, mesh, [Shard(1)]))
    alone = nn.Parameter(weight.clone())
    optimizers = PagedAdamW8bit([cut], lr=1e-2), PagedAdamW8bit([alone], lr=1e-2)
    for _ in range(STEPS):
        gradient = torch.randn(40, width)
        cut.grad, alone.grad = distribute_tensor(gradient, mesh, [Shard(1)]), gradient
        for optimizer in optimizers:
            optimizer.step()
    again = PagedAdamW8bit([cut], lr=1e-2)
    again.load_state_dict(optimizers[0].state_dict())
    assert_same(whole_entry(optimizers[0].state[cut]), whole_entry(again.state[cut]))
    return (
        {"param": whole(cut), **whole_entry(optimizers[0].state[cut])},
        {"param": alone.detach(), **whole_entry(optimizers[1].state[alone])},
    )


def whole_entry(entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of one parameter put together."""
    return {key: whole(value) for key, value in entry.items()}


@pytest.mark.framework("torch.distributed", "tensor parallel layers: `parallelize_module(model, mesh, plan)`")
def test_rows_cut_between_blocks_keep_their_codes(pair: Cluster) -> None:
    cut, alone = pair.run(_tensor_parallel, 1024)[0]
    assert_same(cut, alone)


@pytest.mark.framework("torch.distributed", "tensor parallel layers: `parallelize_module(model, mesh, plan)`")
def test_rows_cut_inside_a_block_are_shown_decoded(pair: Cluster) -> None:
    cut, alone = pair.run(_tensor_parallel, 600)[0]
    assert cut["exp_avg"].dtype == torch.float32
    assert "exp_avg_absmax" not in cut
    torch.testing.assert_close(cut["param"], alone["param"], rtol=0, atol=2e-3)  # other blocks round otherwise


def _stepped_with_sums() -> list[Tensor]:
    """Replicated weights whose gradients are a sum, one still to be made, one on its way, one that is there."""
    mesh = init_device_mesh("cpu", (2,))
    share = DTensor.from_local(torch.full((8, 8), float(dist.get_rank() + 1)), mesh, [Partial()])
    on_its_way = share.redistribute(placements=[Replicate()], async_op=True)
    assert type(on_its_way._local_tensor) is not Tensor
    assert type(local_tensor(on_its_way)) is Tensor, "a kernel reads memory by its address, which must be there"
    there = distribute_tensor(torch.full((8, 8), 3.0), mesh, [Replicate()])
    values = torch.randn(8, 8)
    params = [nn.Parameter(distribute_tensor(values, mesh, [Replicate()])) for _ in range(3)]
    for param, gradient in zip(params, (share, on_its_way, there), strict=True):
        param.grad = gradient
    optimizer = PagedAdamW8bit(params, lr=1e-2)
    optimizer.step()
    return [whole(optimizer.state[param]["exp_avg"]) for param in params]


@pytest.mark.framework("torch.distributed", "tensor parallel layers: `parallelize_module(model, mesh, plan)`")
def test_a_gradient_that_is_still_a_sum_is_waited_for(pair: Cluster) -> None:
    for to_be_made, on_its_way, there in pair.run(_stepped_with_sums):
        assert torch.equal(to_be_made, there)
        assert torch.equal(on_its_way, there)
