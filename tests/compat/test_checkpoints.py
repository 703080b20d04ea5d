"""State dicts as trainers save and load them: laws D1 to D6 of the compatibility list, with the calls they make."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from child import report_of
from oracle import assert_same_params, assert_same_state, give, random_grads, random_params, train, twins
from pagedopt import AdamW, AdamW8bit, GlobalOptimManager, PagedAdamW, PagedAdamW8bit, SpillError, load, save
from residue import needs_proc, open_files_in, tight_paging

pytestmark = pytest.mark.framework("torch.optim", "`state_dict()`, `load_state_dict()`, pickle and deepcopy")

SHAPES = [(300, 257), (4, 1030), (300, 20), (7,)]

each_class = pytest.mark.parametrize("cls", [AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)
paged_class = pytest.mark.parametrize("cls", [PagedAdamW, PagedAdamW8bit], ids=lambda c: c.__name__)


def _options(cls: Any) -> dict[str, Any]:
    if not cls.__name__.startswith("Paged"):
        return {}
    return tight_paging(cls)


def _trained(cls: Any, steps: int = 3, **options: Any) -> tuple[Any, list[Any]]:
    params = random_params(SHAPES)
    opt = cls(params, **_options(cls), **options)
    train(opt, params, steps)
    return opt, params


def _tensors(state_dict: dict[str, Any]) -> list[Tensor]:
    return [value for entry in state_dict["state"].values() for value in entry.values()]


def _saved(state_dict: dict[str, Any], **load_options: Any) -> dict[str, Any]:
    """Return the state dict after a way through a file, as trainers read it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True, **load_options)


# D1: what a state dict is.


@each_class
def test_a_state_dict_is_plain(cls: Any) -> None:
    """D1: two keys, plain dicts, integer keys, tensors on the CPU, groups that JSON can write."""
    state_dict = _trained(cls)[0].state_dict()
    assert type(state_dict) is dict
    assert set(state_dict) == {"state", "param_groups"}
    assert type(state_dict["state"]) is dict
    assert set(state_dict["state"]) == {0, 1, 2, 3}
    assert all(type(entry) is dict for entry in state_dict["state"].values())
    assert all(type(value) is Tensor for value in _tensors(state_dict))
    assert all(value.device.type == "cpu" for value in _tensors(state_dict))
    assert json.loads(json.dumps(state_dict["param_groups"]))[0]["params"] == [0, 1, 2, 3]


@each_class
def test_the_tensors_of_a_state_dict_own_their_storage(cls: Any) -> None:
    """D1: no two share one, none is a view of an arena that `torch.save` would write whole."""
    tensors = _tensors(_trained(cls)[0].state_dict())
    storages = [t.untyped_storage() for t in tensors if t.numel()]
    assert len({s.data_ptr() for s in storages}) == len(storages)
    assert all(s.nbytes() == t.numel() * t.element_size() for s, t in zip(storages, tensors, strict=True))
    assert all(t.is_contiguous() for t in tensors)
    file = io.BytesIO()
    torch.save({"tensors": tensors}, file)
    assert file.tell() < sum(s.nbytes() for s in storages) + 1000 * len(tensors)


@each_class
def test_a_state_dict_is_a_snapshot(cls: Any) -> None:
    """D1: later steps do not change it, and editing it does not change the optimizer."""
    opt, params = _trained(cls)
    state_dict = opt.state_dict()
    before = copy.deepcopy(state_dict)
    train(opt, params, range(3, 5))
    assert_same_state(state_dict, before)
    live = opt.state_dict()
    for value in _tensors(state_dict):
        value.zero_()
    assert_same_state(opt.state_dict(), live)


@each_class
def test_a_state_dict_goes_through_every_file_format(cls: Any) -> None:
    """D1: torch.save with `weights_only=True`, deepcopy, safetensors."""
    state_dict = _trained(cls)[0].state_dict()
    assert_same_state(_saved(state_dict), state_dict)
    assert_same_state(copy.deepcopy(state_dict), state_dict)
    flat = {f"{i}.{k}": v for i, entry in state_dict["state"].items() for k, v in entry.items()}
    back = safetensors.torch.load(safetensors.torch.save(flat))
    assert all(torch.equal(back[name], value) for name, value in flat.items())


@each_class
def test_numbers_of_numpy_in_groups_are_saved_as_numbers(cls: Any, tmp_path: Path) -> None:
    """D1: a schedule that computes with NumPy does not keep a checkpoint from being written or read."""
    numpy = pytest.importorskip("numpy")
    opt, _ = _trained(cls)
    opt.param_groups[0].update(lr=numpy.float64(0.25), betas=(numpy.float32(0.5), 0.75), turns=numpy.int64(3))
    for group in (_saved(opt.state_dict())["param_groups"][0], opt.state_dict()["param_groups"][0]):
        assert (group["lr"], group["betas"], group["turns"]) == (0.25, (0.5, 0.75), 3)
        assert {type(number) for number in (group["lr"], *group["betas"])} == {float}
    save(opt, tmp_path / "checkpoint")
    load(opt, tmp_path / "checkpoint")
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["turns"]) == (0.25, 3)


def test_the_groups_say_which_codec_wrote_the_state() -> None:
    """D1: name and version, so that formats can be added."""
    assert _trained(AdamW8bit)[0].state_dict()["param_groups"][0]["state_codec"] == "dynamic8/1"


# D2: state on disk.

_SNAPSHOT = """
import json, re, sys, threading
from pathlib import Path
import torch
from torch.nn import Parameter
from pagedopt import PagedAdamW

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

MIB = 1 << 20
torch.set_num_threads(1)
params = [Parameter(torch.ones(2 * MIB)) for _ in range(8)]
for p in params:
    p.grad = torch.ones_like(p)
opt = PagedAdamW(params, page_size="1MiB", max_host_memory=16 * MIB, prefetch_depth=1, spill_dir=sys.argv[1])
opt.step()
before, peak, stop = anonymous_bytes(), 0, threading.Event()

def sample():
    global peak
    while not stop.wait(0.001):
        peak = max(peak, anonymous_bytes())

sampler = threading.Thread(target=sample)
sampler.start()
state_dict = opt.state_dict()
stop.set()
sampler.join()
held = anonymous_bytes()
equal = all(torch.equal(e["exp_avg"], torch.full_like(e["exp_avg"], 1 - 0.9)) for e in state_dict["state"].values())
state = sum(v.numel() * v.element_size() for e in state_dict["state"].values() for v in e.values())
print(json.dumps({"state": state, "peak": peak - before, "held": held - before, "equal": equal}))
"""


@needs_proc
def test_state_on_disk_is_saved_without_filling_memory(tmp_path: Path) -> None:
    """D2: a state dict of eight budgets' state lies in mapped files, not in the memory of the process."""
    report = report_of(_SNAPSHOT, tmp_path)
    allowed = 48 << 20
    assert report["equal"]
    assert report["state"] >= 128 << 20
    assert report["peak"] < allowed
    assert report["held"] < allowed


# D3: loading.


@paged_class
def test_a_state_dict_that_finds_no_room_says_where_and_what_to_do(cls: Any, tmp_path: Path) -> None:
    """D2: the folder of its mapped files may be gone, or full; the state itself is as it was."""
    folder = tmp_path / "spill"
    folder.mkdir()
    params = random_params(SHAPES)
    opt = cls(params, **tight_paging(cls, folder))
    train(opt, params, 1)
    folder.rmdir()
    with pytest.raises(SpillError, match=rf"could not make a file of .* in {folder}: no such file.*pagedopt\.save"):
        opt.state_dict()
    train(opt, params, 1)
    save(opt, tmp_path / "checkpoint")


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_casts_nothing(cls: Any, dtype: torch.dtype) -> None:
    """D3: torch's own loader would turn codes into the parameter's dtype."""
    params = random_params(SHAPES, dtype)
    opt = cls(params, **_options(cls))
    train(opt, params, 3)
    saved = _saved(opt.state_dict(), map_location="cpu")
    other = cls(random_params(SHAPES, dtype), **_options(cls))
    other.load_state_dict(saved)
    assert_same_state(other.state_dict(), opt.state_dict())


@each_class
def test_loading_copies_values(cls: Any) -> None:
    """D3: the state dict stays the caller's: editing it later changes nothing, stepping changes nothing in it."""
    opt, params = _trained(cls)
    saved = _saved(opt.state_dict())
    kept = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    train(opt, params, range(3, 4))
    assert_same_state(saved, kept)
    opt.load_state_dict(saved)
    for value in _tensors(saved):
        value.zero_()
    saved["param_groups"][0]["lr"] = 77.0
    assert_same_state(opt.state_dict(), kept)


@each_class
def test_all_four_state_dict_hooks_fire(cls: Any) -> None:
    """D3: and what a hook returns is what is used."""
    opt, params = _trained(cls)
    fired: list[str] = []

    def after_save(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        fired.append("saved")
        return {**state_dict, "extra": 1}

    def before_load(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        fired.append("load")
        return {k: v for k, v in state_dict.items() if k != "extra"}

    opt.register_state_dict_pre_hook(lambda _: fired.append("save"))
    opt.register_state_dict_post_hook(after_save)
    opt.register_load_state_dict_pre_hook(before_load)
    opt.register_load_state_dict_post_hook(lambda _: fired.append("loaded"))
    saved = opt.state_dict()
    assert saved["extra"] == 1
    opt.load_state_dict(saved)
    assert fired == ["save", "saved", "load", "loaded"]
    train(opt, params, range(3, 4))


@each_class
def test_groups_that_do_not_match_are_torchs_errors(cls: Any) -> None:
    """D3: another number of groups, another number of parameters in a group; nothing is changed."""
    opt, params = _trained(cls)
    kept = opt.state_dict()
    two_groups = cls([{"params": params[:1]}, {"params": params[1:]}]).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict(two_groups)
    fewer = cls(params[:2]).state_dict()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        opt.load_state_dict(fewer)
    assert_same_state(opt.state_dict(), kept)


@each_class
def test_missing_group_keys_get_defaults_and_unknown_ones_stay(cls: Any) -> None:
    """D3: a checkpoint of an older or another version."""
    opt, params = _trained(cls, maximize=False)
    saved = opt.state_dict()
    group = saved["param_groups"][0]
    for key in ("maximize", "amsgrad", "foreach", "capturable", "differentiable", "fused"):
        group.pop(key, None)
    group["initial_lr"] = 0.125
    opt.load_state_dict(saved)
    train(opt, params, range(3, 4))
    assert opt.param_groups[0]["initial_lr"] == 0.125
    assert opt.param_groups[0]["maximize"] is False


@needs_proc
@each_class
def test_loading_a_fresh_state_dict_does_nothing(cls: Any, tmp_path: Path) -> None:
    """D3: accelerate loads every optimizer's own state dict into it at prepare."""
    ours, theirs = twins(random_params(SHAPES))
    options = {**_options(cls), "spill_dir": tmp_path} if _options(cls) else {}
    opt, plain = cls(ours, **options), cls(theirs)
    opt.load_state_dict(opt.state_dict())
    assert not opt.state
    assert opt.memory_stats().pages == 0
    assert not open_files_in(tmp_path)
    train(opt, ours, 2)
    train(plain, theirs, 2)
    assert_same_params(ours, theirs)


@each_class
def test_state_of_another_shape_is_refused_and_nothing_changes(cls: Any) -> None:
    """D3: naming the parameter, before any page is written."""
    opt, params = _trained(cls)
    kept = opt.state_dict()
    saved = _saved(kept)
    saved["state"][1]["exp_avg"] = saved["state"][1]["exp_avg"][:2].clone()
    for entry in saved["state"].values():
        entry["step"].fill_(99)
    with pytest.raises(ValueError, match="exp_avg"):
        opt.load_state_dict(saved)
    assert_same_state(opt.state_dict(), kept)
    train(opt, params, range(3, 4))


# D4, D5: resuming.


@each_class
def test_resuming_is_bit_exact(cls: Any) -> None:
    """D4: a plain loop, with a scheduler, saved in the middle and resumed in a new optimizer."""
    straight, cut = twins(random_params(SHAPES))
    whole = cls(straight, lr=1e-2, **_options(cls))
    train(whole, straight, 6, scheduler=torch.optim.lr_scheduler.OneCycleLR(whole, 0.1, total_steps=8))

    first = cls(cut, lr=1e-2, **_options(cls))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(first, 0.1, total_steps=8)
    train(first, cut, 3, scheduler=scheduler)
    saved, schedule = _saved(first.state_dict(), map_location="cpu"), scheduler.state_dict()
    resumed = twins(cut, 1)[0]
    second = cls(resumed, lr=1e-2, **_options(cls))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(second, 0.1, total_steps=8)
    second.load_state_dict(saved)
    scheduler.load_state_dict(schedule)
    train(second, resumed, range(3, 6), scheduler=scheduler)
    assert_same_params(resumed, straight)
    assert_same_state(second.state_dict(), whole.state_dict())


def _moved_to(device: str, state: Any) -> Any:
    """Move every tensor of nested containers, each container rebuilt as its own type, as accelerate does."""
    if isinstance(state, (list, tuple)):
        return type(state)(_moved_to(device, v) for v in state)
    if isinstance(state, dict):
        return type(state)({k: _moved_to(device, v) for k, v in state.items()})
    return state.to(device) if isinstance(state, Tensor) else state


@each_class
def test_accelerates_calls_change_nothing(cls: Any) -> None:
    """D4: prepare: load what state_dict said, moved; step through an assigned wrapper; save; load mapped to the CPU."""
    ours, theirs = twins(random_params(SHAPES))
    opt, plain = cls(ours, **_options(cls)), cls(theirs)
    opt.load_state_dict(_moved_to("cpu", opt.state_dict()))
    original = opt.step
    opt.step = lambda *args, **kwargs: original(*args, **kwargs)
    train(opt, ours, 2)
    opt.step = original
    saved = _saved(opt.state_dict(), map_location="cpu")
    opt.load_state_dict(_moved_to("cpu", saved))
    train(opt, ours, range(2, 4))
    train(plain, theirs, 4)
    assert_same_params(ours, theirs)


@each_class
def test_distributed_checkpoint_state_dicts_change_nothing(cls: Any) -> None:
    """D4: `get_optimizer_state_dict` before the first step and later, and `set_optimizer_state_dict`, by name."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(257, 300), nn.Linear(300, 7))
    twin = copy.deepcopy(model)
    opt, plain = cls(model.parameters(), **_options(cls)), cls(twin.parameters())
    params, others = list(model.parameters()), list(twin.parameters())
    fresh = get_optimizer_state_dict(model, opt)
    assert set(fresh["state"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    train(opt, params, 2)
    saved = get_optimizer_state_dict(model, opt)
    assert int(saved["state"]["0.weight"]["step"]) == 2
    resumed_model = copy.deepcopy(model)
    resumed = cls(resumed_model.parameters(), **_options(cls))
    set_optimizer_state_dict(resumed_model, resumed, saved)
    train(opt, params, range(2, 4))
    train(resumed, list(resumed_model.parameters()), range(2, 4))
    train(plain, others, 4)
    assert_same_params(params, others)
    assert_same_params(list(resumed_model.parameters()), others)


@needs_proc
@paged_class
def test_resumed_state_is_still_paged(cls: Any, tmp_path: Path) -> None:
    """D5: within the budget, on the disk, moving pages at every step."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    opt, _ = _trained(cls, spill_dir=first)
    saved = _saved(opt.state_dict())
    resumed = cls(random_params(SHAPES), **_options(cls), spill_dir=second)
    resumed.load_state_dict(saved)
    before = opt.memory_stats()
    for _ in range(2):
        stats = resumed.memory_stats()
        assert (stats.pages, stats.host_bytes, stats.budget_bytes) == (
            before.pages,
            before.host_bytes,
            before.budget_bytes,
        )
        assert stats.resident_pages * 65_536 <= stats.budget_bytes
        train(resumed, resumed.param_groups[0]["params"], 1)
    assert open_files_in(second)
    resumed.reset_paging_stats()
    train(resumed, resumed.param_groups[0]["params"], 1)
    assert sum(resumed.paging_stats().bytes_read.values()) > 0


# D6: copies.


@each_class
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_keeps_its_configuration_and_continues_bit_exactly(cls: Any, way: str, steps_before: int) -> None:
    """D6: the copy trains as the original, neither sees the other, and its budget is the same."""
    params = random_params(SHAPES)
    opt = cls(params, lr=1e-2, percentile_clipping=50, min_8bit_size=1000, maximize=True, **_options(cls))
    train(opt, params, steps_before)
    pair = (params, opt)
    copies, twin = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(twin) is cls
    assert twin.param_groups[0]["params"][0] is copies[0]
    steps = range(steps_before, steps_before + 3)
    train(opt, params, steps)
    kept = [p.detach().clone() for p in params]
    assert int(twin.state[copies[0]]["step"]) == steps_before if steps_before else not twin.state
    train(twin, copies, steps)
    assert_same_params(copies, kept)
    assert_same_params(params, kept)
    assert_same_state(twin.state_dict(), opt.state_dict())
    assert twin.memory_stats().budget_bytes == opt.memory_stats().budget_bytes


@each_class
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_keeps_what_was_overridden_for_single_parameters(cls: Any, way: str) -> None:
    """D6: the learning rate and the bits that were set for one parameter are those of its copy."""
    params = random_params(SHAPES)
    options = {"lr": 0.5, "optim_bits": 32, "percentile_clipping": 40}
    GlobalOptimManager.get_instance().override_config(params[0], key_value_dict=options)
    opt = cls(params, **_options(cls))
    train(opt, params, 2)
    pair = (params, opt)
    copies, twin = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(opt, params, range(2, 4))
    train(twin, copies, range(2, 4))
    assert_same_params(copies, params)
    assert_same_state(twin.state_dict(), opt.state_dict())


@each_class
def test_a_copy_of_the_optimizer_alone_has_parameters_of_its_own(cls: Any) -> None:
    """D6: as torch's optimizers do: deepcopy copies the parameters that the groups hold, with their gradients."""
    opt, params = _trained(cls)
    twin = copy.deepcopy(opt)
    copies = twin.param_groups[0]["params"]
    assert all(a is not b for a, b in zip(copies, params, strict=True))
    grads = random_grads(params, seed=5)
    for optimizer, own in ((opt, params), (twin, copies)):
        give(own, grads)
        optimizer.step()
    assert_same_params(copies, params)
