"""State of shards in torch's checkpoints: get and set in every way, saved by some processes and loaded by others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cluster import Cluster
from sharded import WHOLE_BLOCKS, assert_same, flat, paged_8bit, sharded_net, train, whole, whole_params, whole_state
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

pytestmark = pytest.mark.framework(
    "torch.distributed", "`get_state_dict`, `set_state_dict`, `torch.distributed.checkpoint`"
)

STEPS = 4

WAYS = {
    "sharded": {},
    "sharded, offloaded": {"cpu_offload": True},
    "full": {"full_state_dict": True},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full on rank 0, broadcast": {"full_state_dict": True, "cpu_offload": True},
}


def _options_to_set(way: str) -> StateDictOptions:
    if way == "full on rank 0, broadcast":
        return StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    return StateDictOptions(**WAYS[way])


def _interrupted(way: str) -> list[dict[str, Tensor]]:
    """Return parameters and state of a run, and of one that was taken up in the middle by a new optimizer."""
    model = sharded_net()
    optimizer = paged_8bit(model)
    train(model, optimizer, 0, STEPS)
    options = StateDictOptions(**WAYS[way])
    saved = get_model_state_dict(model, options=options), get_optimizer_state_dict(model, optimizer, options=options)
    if way == "full on rank 0, broadcast":
        assert bool(saved[1]) == (dist.get_rank() == 0)

    resumed = sharded_net()
    resumed_optimizer = paged_8bit(resumed)
    set_model_state_dict(resumed, saved[0], options=_options_to_set(way))
    set_optimizer_state_dict(resumed, resumed_optimizer, saved[1], options=_options_to_set(way))
    outcome = []
    for m, o in ((model, optimizer), (resumed, resumed_optimizer)):
        train(m, o, STEPS, 2 * STEPS)
        outcome.append(whole_params(m) | flat(whole_state(m, o)))
    assert resumed_optimizer.memory_stats().disk_bytes > 0, "the state that was loaded is still paged"
    return outcome


@pytest.mark.parametrize("way", WAYS)
def test_state_that_is_got_and_set_continues_to_the_bit(pair: Cluster, way: str) -> None:
    for unbroken, resumed in pair.run(_interrupted, way):
        assert_same(unbroken, resumed)


def _save(folder: str) -> dict[str, Tensor]:
    model = sharded_net()
    optimizer = paged_8bit(model)
    train(model, optimizer, 0, STEPS)
    dcp.save(
        {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)},
        checkpoint_id=folder,
    )
    return whole_params(model) | flat(whole_state(model, optimizer))


def _load(folder: str) -> tuple[dict[str, Tensor], int]:
    model = sharded_net()
    optimizer = paged_8bit(model)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])  # type: ignore[arg-type]
    set_optimizer_state_dict(model, optimizer, state["optimizer"])  # type: ignore[arg-type]
    loaded = whole_params(model) | flat(whole_state(model, optimizer))
    train(model, optimizer, STEPS, STEPS + 1)
    return loaded, optimizer.memory_stats().disk_bytes


@pytest.fixture(scope="module")
def saved_by(
    cluster_of: Callable[[int], Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[Path, dict[str, Tensor]]]:
    """Return a checkpoint that so many processes saved and what is in it, put together."""
    made: dict[int, tuple[Path, dict[str, Tensor]]] = {}

    def saved(world: int) -> tuple[Path, dict[str, Tensor]]:
        if world not in made:
            folder = tmp_path_factory.mktemp(f"saved-by-{world}")
            made[world] = folder, cluster_of(world).run(_save, str(folder))[0]
        return made[world]

    return saved


@pytest.mark.parametrize(("saving", "loading"), [(2, 2), (2, 1), (1, 2), (2, 3), (3, 2)])
def test_a_checkpoint_loads_on_any_number_of_processes_to_the_bit(
    cluster_of: Callable[[int], Cluster],
    saved_by: Callable[[int], tuple[Path, dict[str, Tensor]]],
    saving: int,
    loading: int,
) -> None:
    folder, before = saved_by(saving)
    assert before["up.weight.exp_avg"].dtype == torch.int8
    for after, on_disk in cluster_of(loading).run(_load, str(folder)):
        assert on_disk > 0, "the state that was loaded is still paged"
        assert before.keys() == after.keys()
        exact = {key for key in before if saving == loading or not _is_cut_inside_blocks(key)}
        assert_same({key: before[key] for key in exact}, {key: after[key] for key in exact})
        for key in before.keys() - exact:
            assert_encoded_once_more(before[key], after[key])


def _is_cut_inside_blocks(key: str) -> bool:
    """Return whether these moments are shown decoded, because a shard may begin inside a block."""
    return "exp_avg" in key and not key.startswith(WHOLE_BLOCKS)


def assert_encoded_once_more(before: Tensor, after: Tensor) -> None:
    """Values moved by what one more rounding to 8 bits moves them: half a step of the codes, of the block's largest."""
    half_a_step = 0.5 * 0.9 / 64 * before.abs().max()
    assert (before - after).abs().max() <= 2 * half_a_step
    assert (before == after).float().mean() > 0.1


def _state_made_to_load_into() -> list[float]:
    model = sharded_net()
    optimizer = paged_8bit(model)
    get_optimizer_state_dict(model, optimizer)
    return [float(optimizer.state[param]["step"]) for param in model.parameters()]


def test_making_state_to_load_into_is_no_step(pair: Cluster) -> None:
    for steps in pair.run(_state_made_to_load_into):
        assert set(steps) == {0.0}


def _resumed_as_torchtune_does() -> list[dict[str, Tensor]]:
    """Gather every tensor of the state dict, and distribute each again like the one it replaces."""
    model = sharded_net()
    optimizer = paged_8bit(model)
    train(model, optimizer, 0, STEPS)
    saved = optimizer.state_dict()
    gathered = {index: {key: whole(value) for key, value in entry.items()} for index, entry in saved["state"].items()}

    resumed = sharded_net()
    resumed_optimizer = paged_8bit(resumed)
    get_optimizer_state_dict(resumed, resumed_optimizer)  # makes the state to load into
    set_model_state_dict(resumed, get_model_state_dict(model))
    state = resumed_optimizer.state_dict()
    for index, entry in state["state"].items():
        for key, value in entry.items():
            full = gathered[index][key]
            is_cut = isinstance(value, DTensor)
            entry[key] = distribute_tensor(full, value.device_mesh, value.placements) if is_cut else full
    resumed_optimizer.load_state_dict(state)
    outcome = []
    for m, o in ((model, optimizer), (resumed, resumed_optimizer)):
        train(m, o, STEPS, 2 * STEPS)
        outcome.append(whole_params(m) | flat(whole_state(m, o)))
    return outcome


@pytest.mark.framework("torchtune", "its distributed recipes, which gather and distribute the state dict themselves")
def test_a_state_dict_gathered_and_distributed_by_hand_continues_to_the_bit(pair: Cluster) -> None:
    for unbroken, resumed in pair.run(_resumed_as_torchtune_does):
        assert_same(unbroken, resumed)


def _loaded_undistributed() -> str:
    model = sharded_net()
    optimizer = paged_8bit(model)
    train(model, optimizer, 0, 1)
    state = optimizer.state_dict()
    state["state"] = {
        key: {name: value.full_tensor() if value.dim() else value for name, value in entry.items()}
        for key, entry in state["state"].items()
    }
    with pytest.raises(ValueError, match="not distributed") as refused:
        optimizer.load_state_dict(state)
    return str(refused.value)


def test_whole_tensors_for_shards_are_refused_by_name(pair: Cluster) -> None:
    message = pair.run(_loaded_undistributed)[0]
    assert "parameter 0 of group 0" in message
    assert "set_optimizer_state_dict" in message
