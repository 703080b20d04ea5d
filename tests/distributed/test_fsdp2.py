"""FSDP2: each process steps its shards, and all of them together are one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cluster import Cluster
from sharded import (
    IN_8_BITS,
    WHOLE_BLOCKS,
    assert_same,
    flat,
    new_net,
    paged_8bit,
    sharded_net,
    train,
    whole,
    whole_params,
    whole_state,
)
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import pagedopt

pytestmark = pytest.mark.framework("torch.distributed", "FSDP2: `fully_shard(model)`, then `PagedAdamW8bit(...)`")

STEPS = 6


def _trained_8bit() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = sharded_net()
    optimizer = paged_8bit(model, flat_bits=32)
    train(model, optimizer, 0, STEPS)
    return whole_params(model), flat(whole_state(model, optimizer))


def test_two_processes_in_8_bits_are_one_process_to_the_bit(pair: Cluster) -> None:
    alone = new_net()
    optimizer = paged_8bit(alone, flat_bits=32)
    train(alone, optimizer, 0, STEPS)

    params, state = pair.run(_trained_8bit)[0]

    names = dict(alone.named_parameters())
    assert_same(params, {name: param.detach() for name, param in names.items()})
    assert_same(state, flat({name: dict(optimizer.state[param]) for name, param in names.items()}))


def _trained_beside_torch(dtype: torch.dtype | None) -> list[dict[str, Tensor]]:
    """Train with ours; torch's AdamW gets the same gradients."""
    ours, theirs = (
        sharded_net(mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)) for _ in range(2)
    )
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    optimizer = pagedopt.PagedAdamW32bit(ours.parameters(), lr=1e-2, weight_decay=0.1)

    def step_theirs(model: torch.nn.Module) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
            other.grad = None if mine.grad is None else mine.grad.clone()
        reference.step()

    train(ours, optimizer, 0, STEPS, before_step=step_theirs)
    return [whole_params(m) | flat(whole_state(m, o)) for m, o in ((theirs, reference), (ours, optimizer))]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "mixed precision"])
def test_32_bit_state_is_torch_adamw_with_clipping(pair: Cluster, dtype: torch.dtype | None) -> None:
    theirs, ours = pair.run(_trained_beside_torch, dtype)[0]
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-7, msg=name)


def _communications_of_a_step() -> tuple[int, int]:
    model = sharded_net()
    optimizer = paged_8bit(model)
    train(model, optimizer, 0, 1)
    with CommDebugMode() as whole_step:
        train(model, optimizer, 1, 2)
    model.zero_grad()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with CommDebugMode() as ours:
        optimizer.step()
    return whole_step.get_total_counts(), ours.get_total_counts()


def test_a_step_adds_no_communication(pair: Cluster) -> None:
    training, step = pair.run(_communications_of_a_step)[0]
    assert training > 0, "the counter must see FSDP's own"
    assert step == 0


def _paged_use(folder: str) -> tuple[int, int, list[str]]:
    model = sharded_net()
    spill = Path(folder) / f"rank-{dist.get_rank()}"
    spill.mkdir()
    optimizer = paged_8bit(model, spill_dir=spill)
    train(model, optimizer, 0, 2)
    stats = optimizer.memory_stats()
    links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    mine = [link for link in links if link.startswith(folder)]
    return stats.pages - stats.resident_pages, stats.disk_bytes, mine


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc to see open files")
def test_every_process_has_its_own_budget_and_spill_file(pair: Cluster, tmp_path: Path) -> None:
    for rank, (evicted, on_disk, files) in enumerate(pair.run(_paged_use, str(tmp_path))):
        assert evicted > 0
        assert on_disk > 0
        assert files
        assert all(f"rank-{rank}" in name for name in files)


def _trained_with_replaced_parameters() -> list[dict[str, Tensor]]:
    """Build the optimizer first and shard then: as accelerate, put the shards where the parameters were."""
    trained = []
    for is_replaced in (False, True):
        model = new_net()
        optimizer = paged_8bit(model)
        names = {id(param): name for name, param in model.named_parameters()}
        placed = [[names[id(param)] for param in group["params"]] for group in optimizer.param_groups]
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        if is_replaced:
            for group, inside in zip(optimizer.param_groups, placed, strict=True):
                group["params"] = [model.get_parameter(name) for name in inside]
        else:
            optimizer = paged_8bit(model)
        train(model, optimizer, 0, STEPS)
        trained.append(whole_params(model) | flat(whole_state(model, optimizer)))
    return trained


@pytest.mark.framework(
    "accelerate", "`accelerator.prepare(model, optimizer)` with FSDP2, which puts shards in the groups"
)
def test_parameters_replaced_by_their_shards_train_the_same(pair: Cluster) -> None:
    for built_after, replaced in pair.run(_trained_with_replaced_parameters):
        assert_same(built_after, replaced)


def _formats() -> dict[str, list[str]]:
    model = sharded_net()
    optimizer = paged_8bit(model)
    optimizer.init_state()
    records = {name: optimizer._store.records[param] for name, param in model.named_parameters()}
    return {
        name: [record.state_format.name, str(record.grid.row_width if name in WHOLE_BLOCKS else "")]
        for name, record in records.items()
    }


def test_8_or_32_bits_and_blocks_do_not_depend_on_the_mesh(cluster_of: Any) -> None:
    alone = new_net()
    optimizer = paged_8bit(alone)
    optimizer.init_state()
    expected = {
        name: [record.state_format.name, str(record.grid.row_width if name in WHOLE_BLOCKS else "")]
        for name, record in ((n, optimizer._store.records[p]) for n, p in alone.named_parameters())
    }
    expected["head.weight"][1] = expected["up.bias"][1] = ""
    assert {name for name, (kept, _) in expected.items() if kept == "BLOCKWISE8"} == set(IN_8_BITS)
    for world in (1, 2, 3):
        for found in cluster_of(world).run(_formats):
            found["head.weight"][1] = found["up.bias"][1] = ""
            assert found == expected


def _edited_in_place() -> list[bool]:
    model = sharded_net()
    optimizer = paged_8bit(model)
    train(model, optimizer, 0, 2)
    param = model.up.weight
    held = optimizer.state[param]["exp_avg"]
    is_like_the_parameter = [
        isinstance(held, DTensor),
        held.placements == param.placements,
        held.device_mesh == param.device_mesh,
        held.shape == param.shape,
    ]
    held.zero_()
    optimizer.state[model.widen.weight]["exp_avg"].zero_()
    optimizer.state[param]["exp_avg_absmax"] = optimizer.state[param]["exp_avg_absmax"] * 2
    read = [bool(whole(optimizer.state[p]["exp_avg"]).any()) for p in (param, model.widen.weight, model.down.weight)]
    return [*is_like_the_parameter, not read[0], not read[1], read[2]]


def test_state_of_a_shard_is_live_and_like_its_parameter(pair: Cluster) -> None:
    assert all(all(found) for found in pair.run(_edited_in_place))


def _refused_clipping() -> str:
    optimizer = pagedopt.AdamW8bit(sharded_net().parameters(), percentile_clipping=5)
    with pytest.raises(ValueError, match="percentile_clipping") as refused:
        optimizer.init_state()
    return str(refused.value)


def test_clipping_by_a_norm_that_no_process_has_is_refused(pair: Cluster) -> None:
    assert "clip_grad_norm_" in pair.run(_refused_clipping)[0]
