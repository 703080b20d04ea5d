"""A checkpoint brings back every bit, into any pages, budget and order, and 8 and 32 bits into each other."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.nn import Parameter

import pagedopt
from oracle import assert_same_params, random_params, train, twins
from pagedopt import AdamW, AdamW8bit, CheckpointError, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit
from pagedopt.formats.recognise import recognise
from residue import smallest_budget
from states import SHAPES, contents, differences, files_in, optimizer_of, params_of
from strategies import STATE_KINDS

KINDS = list(STATE_KINDS)


def like(optimizer: Any, kind: str, **options: Any) -> PagedAdamW:
    """Return a new optimizer of that kind over copies of the parameters of another, with their names."""
    names = optimizer.param_groups[0]["param_names"]
    (params,) = twins(params_of(optimizer), 1)
    return PagedAdamW(
        list(zip(names, params, strict=True)), **{"lr": 1e-2, "page_size": "64KiB", **STATE_KINDS[kind], **options}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_state_comes_back_and_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    optimizer = optimizer_of(kind)
    pagedopt.save(optimizer, tmp_path / "checkpoint")
    loaded = like(optimizer, kind)
    pagedopt.load(loaded, tmp_path / "checkpoint")
    assert differences(contents(loaded), contents(optimizer)) == []
    for one in (optimizer, loaded):
        train(one, params_of(one), range(2, 4))
    assert_same_params(params_of(optimizer), params_of(loaded))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pages_budget_and_depth_are_free_on_both_sides(data: st.DataObject, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from(("8", "32-amsgrad")))

    def machine() -> dict[str, Any]:
        page_size, depth = data.draw(st.sampled_from(("64KiB", 100_000, "1MiB"))), data.draw(st.integers(0, 2))
        spare = data.draw(st.integers(0, 3)) * 65_536
        return {
            "page_size": page_size,
            "prefetch_depth": depth,
            "max_host_memory": smallest_budget(page_size, depth) + spare,
            "spill_dir": tmp_path,
        }

    optimizer = optimizer_of(kind, **machine())
    max_file_size = data.draw(st.sampled_from((1, 100_000, "4GiB")))
    pagedopt.save(optimizer, tmp_path / "checkpoint", max_file_size=max_file_size)
    loaded = like(optimizer, kind, **machine())
    pagedopt.load(loaded, tmp_path / "checkpoint")
    assert differences(contents(loaded), contents(optimizer)) == []
    assert loaded.memory_stats().budget_bytes is not None


@pytest.mark.parametrize("kind", ["32-amsgrad", "8-clipped", "8-tensor-wise"])
def test_anyones_safetensors_library_reads_the_files(kind: str, tmp_path: Path) -> None:
    optimizer = optimizer_of(kind)
    pagedopt.save(optimizer, tmp_path, max_file_size=300_000)
    expected = {
        f"{name}.{key}": tensor
        for name, entry in contents(optimizer)["state"].items()
        for key, tensor in entry.items()
        if key != "step"
    }
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - it is no dict
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(found[key], tensor), key
    assert len(list(tmp_path.glob("*.safetensors"))) > 1, "a file is not begun beyond its size"


def test_the_manifest_is_json_that_says_codec_shapes_and_checksums(tmp_path: Path) -> None:
    pagedopt.save(optimizer_of("8"), tmp_path)
    manifest = json.loads((tmp_path / "pagedopt.json").read_text())
    assert manifest["codec"] == "dynamic8/1"
    assert manifest["params"][0]["shape"] == [300, 257]
    assert manifest["params"][0]["format"] == "blockwise8"
    assert len(manifest["params"][0]["tensors"]["exp_avg"]) == 32


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["8", "32-amsgrad"])
def test_checkpoints_move_between_devices(kind: str, tmp_path: Path) -> None:
    on_cpu = optimizer_of(kind)
    device = torch.accelerator.current_accelerator()
    pagedopt.save(on_cpu, tmp_path / "from-cpu")
    names = on_cpu.param_groups[0]["param_names"]
    params = [Parameter(param.detach().to(device)) for param in params_of(on_cpu)]
    options: dict[str, Any] = {"lr": 1e-2, "page_size": "64KiB", "max_gpu_memory": "1MiB", **STATE_KINDS[kind]}
    on_gpu = PagedAdamW(list(zip(names, params, strict=True)), **options)
    pagedopt.load(on_gpu, tmp_path / "from-cpu")
    assert differences(contents(on_gpu), contents(on_cpu)) == []
    pagedopt.save(on_gpu, tmp_path / "from-gpu")
    again = like(on_cpu, kind)
    pagedopt.load(again, tmp_path / "from-gpu")
    assert differences(contents(again), contents(on_cpu)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["8", "32-amsgrad"])
def test_a_state_dict_mapped_to_the_gpu_goes_into_pages_in_ram(kind: str, tmp_path: Path) -> None:
    optimizer = optimizer_of(kind)
    torch.save(optimizer.state_dict(), tmp_path / "file")
    device = torch.accelerator.current_accelerator()
    loaded = like(optimizer, kind)
    loaded.load_state_dict(torch.load(tmp_path / "file", map_location=device, weights_only=True))
    assert differences(contents(loaded), contents(optimizer)) == []


# Order, names and groups.


def test_parameters_are_found_by_name_in_another_order(tmp_path: Path) -> None:
    optimizer = optimizer_of("8")
    pagedopt.save(optimizer, tmp_path)
    names = optimizer.param_groups[0]["param_names"]
    (params,) = twins(params_of(optimizer), 1)
    turned = PagedAdamW8bit(list(zip(names, params, strict=True))[::-1])
    pagedopt.load(turned, tmp_path)
    assert differences({**contents(turned), "groups": []}, {**contents(optimizer), "groups": []}) == []
    assert turned.param_groups[0]["param_names"] == names[::-1]
    train(optimizer, params_of(optimizer), range(2, 4), gradients=lambda step: _grads(params_of(optimizer), step))
    train(turned, params_of(turned), range(2, 4), gradients=lambda step: _grads(params_of(optimizer), step)[::-1])
    assert_same_params(params_of(optimizer), params_of(turned)[::-1])


def _grads(params: list[Any], step: int) -> list[Any]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(param.shape, generator=generator) for param in params]


def test_state_dicts_are_matched_by_name_too_and_so_are_groups() -> None:
    shapes = [(4,), (5,), (6,)]
    params = random_params(shapes)
    ours = AdamW(
        [{"params": [("a", params[0]), ("b", params[1])], "lr": 1e-3}, {"params": [("c", params[2])], "lr": 1e-2}]
    )
    train(ours, params, 2)
    others = random_params(shapes)
    turned = AdamW([{"params": [("c", others[2])]}, {"params": [("b", others[1]), ("a", others[0])]}])
    turned.load_state_dict(ours.state_dict())
    for mine, theirs in zip(params, others, strict=True):
        assert torch.equal(ours.state[mine]["exp_avg"], turned.state[theirs]["exp_avg"])
    assert [group["lr"] for group in turned.param_groups] == [1e-2, 1e-3]
    assert [group["param_names"] for group in turned.param_groups] == [["c"], ["b", "a"]]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "x"], r"'x' is not saved and 'b' is not in this optimizer"),
        (["a"], "'b' is not in this optimizer"),
    ],
)
def test_other_names_are_refused_and_named(names: list[str], said: str) -> None:
    params = random_params([(4,), (5,)])
    saved = AdamW([("a", params[0]), ("b", params[1])])
    train(saved, params, 1)
    others = random_params([(4,), (5,)])
    with pytest.raises(CheckpointError, match=said):
        AdamW(list(zip(names, others, strict=False))).load_state_dict(saved.state_dict())


def test_names_with_nothing_in_common_are_matched_by_position_aloud(tmp_path: Path) -> None:
    params = random_params([(4,), (4,)])
    saved = AdamW([("module.a", params[0]), ("module.b", params[1])])
    train(saved, params, 1)
    pagedopt.save(saved, tmp_path)
    others = random_params([(4,), (4,)])
    loaded = AdamW([("a", others[0]), ("b", others[1])])
    with pytest.warns(UserWarning, match="matched by position"):
        pagedopt.load(loaded, tmp_path)
    assert torch.equal(saved.state[params[1]]["exp_avg"], loaded.state[others[1]]["exp_avg"])
    assert loaded.param_groups[0]["param_names"] == ["a", "b"]


def test_groups_are_brought_back_with_every_value_that_json_has_not(tmp_path: Path) -> None:
    (param,) = random_params([(4,)])
    values = {
        "initial_lr": 3e-4,
        "name": "décay ",
        "of_a_scheduler": {"milestones": [1, (2, 3)], "best": float("inf"), "worst": float("-inf"), "none": None},
        "flag": True,
        "tensor": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    }
    optimizer = AdamW([{"params": [param], **values}], lr=torch.tensor(1e-3), betas=(0.8, 0.9))
    train(optimizer, [param], 1)
    pagedopt.save(optimizer, tmp_path)
    loaded = AdamW(random_params([(4,)]))
    pagedopt.load(loaded, tmp_path)
    before, after = dict(optimizer.param_groups[0]), dict(loaded.param_groups[0])
    assert isinstance(after["lr"], torch.Tensor)
    for group in (before, after):
        del group["params"]
    assert str(sorted(before.items())) == str(sorted(after.items()))
    assert after["betas"] == (0.8, 0.9)


def test_a_value_that_no_checkpoint_can_keep_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (param,) = random_params([(4,)])
    optimizer = AdamW([{"params": [param], "schedule": lambda step: step}])
    train(optimizer, [param], 1)
    with pytest.raises(CheckpointError, match=r"param_groups\[0\]\['schedule'\].*remove it"):
        pagedopt.save(optimizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Conversions.


@pytest.mark.parametrize(
    ("saves", "loads"), [("8", "32"), ("32", "8"), ("32", "8-tensor-wise"), ("8-tensor-wise", "32")]
)
def test_precision_is_what_the_class_that_loads_says_and_said_once(saves: str, loads: str, tmp_path: Path) -> None:
    """And a checkpoint converts as a state dict does, to the bit."""
    optimizer = optimizer_of(saves)
    pagedopt.save(optimizer, tmp_path)
    from_file, from_dict = like(optimizer, loads), like(optimizer, loads)
    with pytest.warns(UserWarning, match="as this optimizer's class says") as said:
        pagedopt.load(from_file, tmp_path)
    assert len(said) == 1
    assert said[0].filename == __file__
    with pytest.warns(UserWarning, match="as this optimizer's class says") as said:
        from_dict.load_state_dict(optimizer.state_dict())
    assert said[0].filename == __file__
    assert differences(contents(from_file), contents(from_dict)) == []


def test_8_bits_that_go_through_32_and_back_stand_for_the_same_values(tmp_path: Path) -> None:
    """To the bit; a block of a single value may have its scale rounded to a neighbour that gives the same product."""
    optimizer = optimizer_of("8")
    wide, narrow, again = (like(optimizer, kind) for kind in ("32", "8", "32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for saves, loads in ((optimizer, wide), (wide, narrow), (narrow, again)):
            pagedopt.save(saves, tmp_path)
            pagedopt.load(loads, tmp_path)
    assert differences(contents(again), contents(wide)) == []
    codes = [entry["exp_avg"] for entry in contents(optimizer)["state"].values()]
    assert all(map(torch.equal, codes, (entry["exp_avg"] for entry in contents(narrow)["state"].values())))


# What a save and a load leave alone.


def test_a_save_changes_nothing_and_loads_into_what_it_came_from(tmp_path: Path) -> None:
    optimizer = optimizer_of("8-clipped")
    before = contents(optimizer)
    pagedopt.save(optimizer, tmp_path)
    assert differences(contents(optimizer), before) == []
    train(optimizer, params_of(optimizer), range(2, 3))
    pagedopt.load(optimizer, tmp_path)
    assert differences(contents(optimizer), before) == []


def test_parameters_without_state_have_none_after_a_load(tmp_path: Path) -> None:
    params = random_params([(4,), (5,)])
    optimizer = AdamW(params)
    params[0].grad = torch.ones(4)
    optimizer.step()
    pagedopt.save(optimizer, tmp_path)
    others = random_params([(4,), (5,)])
    loaded = AdamW(others)
    train(loaded, others, 1)
    pagedopt.load(loaded, tmp_path)
    assert list(loaded.state_dict()["state"]) == [0]


def test_an_optimizer_without_state_is_saved_and_loaded(tmp_path: Path) -> None:
    optimizer = AdamW(random_params([(4,)]), lr=0.5)
    pagedopt.save(optimizer, tmp_path)
    loaded = AdamW(random_params([(4,)]))
    pagedopt.load(loaded, tmp_path)
    assert not loaded.state
    assert loaded.param_groups[0]["lr"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["pagedopt.json"]


def test_what_was_written_into_state_is_saved(tmp_path: Path) -> None:
    optimizer = optimizer_of("32")
    param = params_of(optimizer)[0]
    optimizer.state[param]["exp_avg"].fill_(3)
    held = optimizer.state[param]["exp_avg_sq"]
    held.zero_()
    pagedopt.save(optimizer, tmp_path)
    loaded = like(optimizer, "32")
    pagedopt.load(loaded, tmp_path)
    assert loaded.state[params_of(loaded)[0]]["exp_avg"].eq(3).all()
    assert not loaded.state[params_of(loaded)[0]]["exp_avg_sq"].any()


def test_a_save_replaces_the_one_before_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not ours")
    (tmp_path / "state-x.safetensors").write_bytes(b"nor this")
    first, second = optimizer_of("8"), optimizer_of("32")
    pagedopt.save(first, tmp_path)
    names = set(files_in(tmp_path))
    pagedopt.save(second, tmp_path)
    loaded = like(second, "32")
    pagedopt.load(loaded, tmp_path)
    assert differences(contents(loaded), contents(second)) == []
    assert set(files_in(tmp_path)) & names == {"model.safetensors", "state-x.safetensors", "pagedopt.json"}
    assert len(files_in(tmp_path)) == 4


def test_a_shape_that_is_not_the_parameters_is_refused_by_name(tmp_path: Path) -> None:
    params = random_params([(4,), (5,)])
    optimizer = AdamW([("a", params[0]), ("b", params[1])])
    train(optimizer, params, 1)
    pagedopt.save(optimizer, tmp_path)
    others = random_params([(4,), (6,)])
    loaded = AdamW([("a", others[0]), ("b", others[1])])
    with pytest.raises(CheckpointError, match=r"'b'.*\(5,\).*\(6,\)"):
        pagedopt.load(loaded, tmp_path)
    assert not loaded.state


def test_hooks_of_state_dicts_do_not_fire_and_no_pickle_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = optimizer_of("8")
    loaded = like(optimizer, "8")

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("must not be called")

    optimizer.register_state_dict_pre_hook(never)
    loaded.register_load_state_dict_pre_hook(never)
    loaded.register_load_state_dict_post_hook(never)
    for module, name in (("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("torch", "load")):
        monkeypatch.setattr(f"{module}.{name}", never)
    pagedopt.save(optimizer, tmp_path)
    pagedopt.load(loaded, tmp_path)


def test_a_closed_or_lost_optimizer_is_not_saved(tmp_path: Path) -> None:
    optimizer = optimizer_of("8")
    optimizer.close()
    with pytest.raises(pagedopt.PagedOptError, match="closed"):
        pagedopt.save(optimizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_our_optimizers_are_saved_loaded_and_exported(tmp_path: Path) -> None:
    theirs: Any = torch.optim.AdamW(random_params([(4,)]))
    for call in (pagedopt.save, pagedopt.load, pagedopt.export_state):
        with pytest.raises(TypeError, match="optimizer must be one of pagedopt's, got AdamW"):
            call(theirs, "torch")


def test_state_of_no_parameter_is_not_dropped_in_silence(tmp_path: Path) -> None:
    optimizer = optimizer_of("8")
    optimizer.state["a note"] = {"of": 1}
    with pytest.raises(CheckpointError, match="'a note'"):
        pagedopt.save(optimizer, tmp_path / "new")


def test_saves_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    """All ranks saving to one path is a mistake that must not cost the checkpoint."""
    optimizers = [optimizer_of("8", steps=steps) for steps in (1, 2, 3)]
    threads = [
        threading.Thread(target=lambda one=one: [pagedopt.save(one, tmp_path) for _ in range(4)]) for one in optimizers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = like(optimizers[0], "8")
    pagedopt.load(loaded, tmp_path)
    assert [] in [differences(contents(loaded), contents(one)) for one in optimizers]
    pagedopt.save(loaded, tmp_path)
    assert len(files_in(tmp_path)) == 2, "what the others left is removed by the next that is alone"


def test_loading_while_a_save_replaces_the_checkpoint_gives_one_of_them(tmp_path: Path) -> None:
    optimizers = [optimizer_of("8", steps=steps) for steps in (1, 2)]
    known = [contents(one) for one in optimizers]
    pagedopt.save(optimizers[0], tmp_path)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for one in optimizers:
                pagedopt.save(one, tmp_path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(10):
            loaded = like(optimizers[0], "8")
            pagedopt.load(loaded, tmp_path)
            assert [] in [differences(contents(loaded), one) for one in known]
    finally:
        stop.set()
        thread.join()


# Copies.


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_has_a_spill_file_of_its_own_and_goes_on_to_the_bit(way: str, tmp_path: Path) -> None:
    import copy
    import pickle

    optimizer = optimizer_of("8", spill_dir=tmp_path, max_host_memory=smallest_budget("64KiB", 2))
    twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    assert twin.memory_stats().disk_bytes > 0
    train(twin, params_of(twin), range(2, 5))
    undisturbed = contents(optimizer)
    train(optimizer, params_of(optimizer), range(2, 5))
    assert_same_params(params_of(optimizer), params_of(twin))
    assert differences(contents(optimizer), contents(twin)) == []
    assert differences(contents(optimizer), undisturbed) != []


# The class is free.


@pytest.mark.parametrize("cls", [AdamW, PagedAdamW32bit, AdamW8bit, PagedAdamW8bit])
def test_any_class_loads_what_any_class_saved(cls: Any, tmp_path: Path) -> None:
    optimizer = optimizer_of("32")
    pagedopt.save(optimizer, tmp_path)
    loaded = cls([Parameter(torch.zeros(shape)) for shape in SHAPES])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pagedopt.load(loaded, tmp_path)
    train(loaded, params_of(loaded), range(2, 3))
    assert all(int(loaded.state[param]["step"]) == 3 for param in params_of(loaded))


def test_entries_as_they_are_saved_are_what_state_dicts_hold(tmp_path: Path) -> None:
    """The files' own tensors, read by anyone, are an entry that `load_state_dict` takes."""
    optimizer = optimizer_of("8", [(64, 300)])
    pagedopt.save(optimizer, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        entry = {key.removeprefix("layer.0."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert recognise({"step": 2, **entry}, (64, 300)).is_8bit


def test_a_file_in_the_place_of_a_folder_is_told_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is a file.*for load_state_dict.*pagedopt convert"):
        pagedopt.load(optimizer_of("8"), tmp_path / "optimizer.pt")
