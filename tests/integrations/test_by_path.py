"""Frameworks that are not installed here, by the calls that they make: import paths, text values, injected keys,
entry points.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
from collections import OrderedDict, UserList
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

from pagedopt import PagedAdamW, PagedAdamW8bit, PagedAdamW32bit


def new_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(80, 80), nn.Tanh(), nn.Linear(80, 80))


def backward(model: nn.Module, seed: int) -> None:
    batch = torch.randn(4, 80, generator=torch.Generator().manual_seed(seed))
    (model(batch) - batch).square().mean().backward()


def bits_of(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


# -- torchtune ---------------------------------------------------------------------------------------------------------


def instantiate(config: dict[str, Any], *args: Any) -> Any:
    """torchtune's: the class at `_component_`, with the arguments of the call first and those of the YAML by name."""
    path = config["_component_"].split(".")
    component = functools.reduce(getattr, path[1:], importlib.import_module(path[0]))
    return component(*args, **{key: value for key, value in config.items() if key != "_component_"})


TUNE = {"_component_": "pagedopt.PagedAdamW8bit", "lr": "2e-5", "betas": [0.9, 0.95], "page_size": "64KiB"}
"""As YAML gives it: `2e-5` has no point, so it is text there, and a tuple is a list."""


@pytest.mark.framework(
    "torchtune", "`optimizer: {_component_: pagedopt.PagedAdamW8bit, lr: 2e-5, max_gpu_memory: 2GiB}`"
)
def test_a_component_by_path_with_values_as_yaml_gives_them() -> None:
    optimizer = instantiate(TUNE, new_model().parameters())
    assert optimizer.param_groups[0]["lr"] == 2e-5
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.9, 0.95)


@pytest.mark.framework(
    "torchtune", "`optimizer: {_component_: pagedopt.PagedAdamW8bit, lr: 2e-5, max_gpu_memory: 2GiB}`"
)
def test_a_list_of_a_configuration_that_is_no_list_is_a_pair() -> None:
    """OmegaConf's lists are sequences of a type of their own; Hydra hands them on as they are."""
    optimizer = instantiate({**TUNE, "betas": UserList([0.9, 0.95])}, new_model().parameters())
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert type(optimizer.param_groups[0]["betas"]) is tuple


@pytest.mark.framework("torchtune", "`optimizer_in_bwd: True`")
def test_an_optimizer_a_parameter_stepped_in_backward_saves_and_resumes_to_the_bit() -> None:
    def start() -> tuple[nn.Module, dict[str, Any]]:
        model = new_model()
        by_param = {param: instantiate({**TUNE, "lr": 1e-2}, [param]) for param in model.parameters()}

        def hook(param: Tensor) -> None:
            by_param[param].step()
            by_param[param].zero_grad()

        for param in model.parameters():
            param.register_post_accumulate_grad_hook(hook)
        return model, {name: by_param[param] for name, param in model.named_parameters()}

    model, optimizers = start()
    for seed in range(3):
        backward(model, seed)
    assert all(param.grad is None for param in model.parameters())
    saved = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    resumed, resumed_optimizers = start()
    resumed.load_state_dict(model.state_dict())
    for name, optimizer in resumed_optimizers.items():
        optimizer.load_state_dict(saved[name])
    for one in (model, resumed):
        backward(one, 3)
    for left, right in zip(bits_of(model), bits_of(resumed), strict=True):
        assert torch.equal(left, right)


# -- kohya's sd-scripts ------------------------------------------------------------------------------------------------


def by_type_and_args(optimizer_type: str, optimizer_args: list[str], params: Any, lr: float) -> torch.optim.Optimizer:
    """sd-scripts': `--optimizer_type` is a path with case kept, each of `--optimizer_args` a literal after `=`."""
    kwargs = {}
    for arg in optimizer_args:
        key, value = arg.split("=")
        kwargs[key] = ast.literal_eval(value)
    *path, name = optimizer_type.split(".")
    cls = getattr(importlib.import_module(".".join(path)), name)
    optimizer: torch.optim.Optimizer = cls(params, lr=lr, **kwargs)
    return optimizer


@pytest.mark.framework(
    "kohya sd-scripts", "`--optimizer_type pagedopt.PagedAdamW8bit --optimizer_args \"max_gpu_memory='2GiB'\"`"
)
def test_a_type_by_path_with_arguments_as_literals(tmp_path: Path) -> None:
    model = new_model()
    groups = [{"params": list(model[0].parameters()), "lr": 1e-4}, {"params": list(model[2].parameters())}]
    args = [
        "weight_decay=0.1",
        "betas=0.9,0.99",
        "page_size='64KiB'",
        f"spill_dir='{tmp_path}'",
        "max_host_memory=327680",
    ]
    optimizer = by_type_and_args("pagedopt.PagedAdamW8bit", args, groups, lr=1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-3]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert not hasattr(optimizer, "train"), "sd-scripts would take it for a schedule-free optimizer and call it"
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    backward(model, 0)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["initial_lr"] == 1e-4


# -- torchtitan --------------------------------------------------------------------------------------------------------


class OptimizersContainer(torch.optim.Optimizer, Stateful):
    """torchtitan's way: one optimizer a model part, itself an optimizer over all parameters for hooks and schedules."""

    def __init__(self, parts: list[nn.Module], cls: type, kwargs: dict[str, Any]) -> None:
        self.parts = parts
        self.optimizers = [cls([p for p in part.parameters() if p.requires_grad], **kwargs) for part in parts]
        super().__init__([p for part in parts for p in part.parameters()], kwargs)

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.optimizers)

    def step(self, *args: Any, **kwargs: Any) -> None:
        for optimizer in self.optimizers:
            optimizer.step(*args, **kwargs)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        found: dict[str, Any] = {}
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            found.update(get_optimizer_state_dict(part, optimizer, options=options))
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            set_optimizer_state_dict(part, optimizer, optim_state_dict=state_dict, options=options)


TITAN = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "foreach": False}


@pytest.mark.framework(
    "torchtitan", '`OptimizersContainer(model_parts, PagedAdamW8bit, {...})` with `implementation = "for-loop"`'
)
def test_a_container_of_optimizers_saves_flat_and_resumes_to_the_bit() -> None:
    def start() -> tuple[nn.Module, OptimizersContainer, list[Any]]:
        model = new_model()
        container = OptimizersContainer([model], PagedAdamW8bit, {**TITAN, "fused": False})
        return model, container, [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)) for o in container]

    def train(model: nn.Module, container: OptimizersContainer, schedules: list[Any], seeds: range) -> None:
        for seed in seeds:
            container.zero_grad()
            backward(model, seed)
            container.step()
            for schedule in schedules:
                schedule.step()

    model, container, schedules = start()
    train(model, container, schedules, range(3))
    saved = container.state_dict()
    assert saved["state.0.weight.exp_avg"].dtype == torch.int8
    resumed, resumed_container, resumed_schedules = start()
    resumed.load_state_dict(model.state_dict())
    resumed_container.load_state_dict(saved)
    for schedule, other in zip(schedules, resumed_schedules, strict=True):
        other.load_state_dict(schedule.state_dict())
    for run in ((model, container, schedules), (resumed, resumed_container, resumed_schedules)):
        train(*run, range(3, 6))
    for left, right in zip(bits_of(model), bits_of(resumed), strict=True):
        assert torch.equal(left, right)


def groups_of(model: nn.Module, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """torchtitan's, since every group names its optimizer: all there is to say is in the groups, names too."""
    groups = []
    for pattern, changed in (("bias", {"weight_decay": 0.0}), ("weight", {})):
        named = [(name, param) for name, param in model.named_parameters() if pattern in name]
        implementation = {"fused": False, "foreach": False}
        names, params = [name for name, _ in named], [param for _, param in named]
        groups.append({"params": params, "param_names": names, **implementation, **kwargs, **changed})
    return groups


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """torchtitan's way to make state to load into: a step of rate 0 on zeros."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step(closure=None)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """torchtitan's: `state.NAME.KEY` and `param_groups.NAME.KEY`, by the names in the groups."""
    make_state(optimizer)
    saved, flat = optimizer.state_dict(), {}
    for group in saved["param_groups"]:
        for name, index in zip(group["param_names"], group["params"], strict=True):
            flat.update({f"state.{name}.{key}": value for key, value in saved["state"][index].items()})
            others = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            flat.update({f"param_groups.{name}.{key}": value for key, value in others.items()})
    return flat


def load_flat_state(optimizer: torch.optim.Optimizer, flat: dict[str, Any]) -> None:
    """torchtitan's: by number again, groups without names, every key that the optimizer has now."""
    make_state(optimizer)
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        names, first = group["param_names"], len(state)
        for name, param in zip(names, group["params"], strict=True):
            state[len(state)] = {key: flat[f"state.{name}.{key}"] for key in optimizer.state[param]}
        keys = [key for key in group if key not in ("params", "param_names")]
        kept = {key: flat[f"param_groups.{names[0]}.{key}"] for key in keys}
        groups.append({"params": list(range(first, len(state))), **kept})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@pytest.mark.framework(
    "torchtitan",
    "an `OptimizersContainer` whose `_resolve_optimizer_cls` returns `partial(PagedAdamW8bit, max_gpu_memory=...)`",
)
def test_groups_with_all_that_there_is_to_say_save_flat_by_name_and_resume_to_the_bit() -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = new_model()
        cls = functools.partial(PagedAdamW8bit, page_size="64KiB")
        return model, cls(groups_of(model, {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}))

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad(set_to_none=True)
            backward(model, seed)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model, optimizer = start()
    train(model, optimizer, range(3))
    resumed, resumed_optimizer = start()
    resumed.load_state_dict(model.state_dict())
    load_flat_state(resumed_optimizer, flat_state(optimizer))
    assert flat_state(resumed_optimizer).keys() == flat_state(optimizer).keys(), "names and keys outlive a load"
    assert [group["weight_decay"] for group in resumed_optimizer.param_groups] == [0.0, 0.1]
    for run in ((model, optimizer), (resumed, resumed_optimizer)):
        train(*run, range(3, 6))
    for left, right in zip(bits_of(model), bits_of(resumed), strict=True):
        assert torch.equal(left, right)


@pytest.mark.framework("torchtitan", '`implementation = "fused"`')
def test_the_fused_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="fused=True"):
        OptimizersContainer([new_model()], PagedAdamW8bit, {**TITAN, "fused": True})


# -- LLM Foundry -------------------------------------------------------------------------------------------------------

FOUNDRY = "llmfoundry_optimizers"
"""The group of entry points in which its registry of optimizers looks a name up."""


def entry_points() -> dict[str, metadata.EntryPoint]:
    """Return those of the installed package; run from its sources, those that it will have."""
    installed = [
        found
        for found in metadata.entry_points(group=FOUNDRY)
        if found.dist is not None and found.dist.name == "pagedopt"
    ]
    if installed:
        return {found.name: found for found in installed}
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml where the package is not installed")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"][FOUNDRY]
    return {name: metadata.EntryPoint(name, value, FOUNDRY) for name, value in declared.items()}


def build_optimizer(model: nn.Module, name: str, config: dict[str, Any]) -> torch.optim.Optimizer:
    """LLM Foundry's: groups by a part of their names, what is left in a view of a dict, everything by keyword."""
    named = OrderedDict((n, p) for n, p in model.named_parameters() if p.requires_grad)
    params: list[dict[str, Any]] = []
    for group in config.pop("param_groups"):
        match = group.pop("param_str_match")
        params.append({"params": [named.pop(n) for n in list(named) if match in n], **group})
    params.insert(0, {"params": named.values()})
    cls = entry_points()[name].load()
    assert issubclass(cls, torch.optim.Optimizer)
    optimizer: torch.optim.Optimizer = cls(**config, params=params)
    return optimizer


@pytest.mark.framework(
    "LLM Foundry", "`optimizer: {name: paged_adamw_8bit, lr: 2e-5, max_gpu_memory: 2GiB}`, found by its entry point"
)
def test_an_entry_point_by_name_with_groups_by_parts_of_names() -> None:
    model = new_model()
    config = {
        "lr": 1e-2,
        "betas": [0.9, 0.95],
        "page_size": "64KiB",
        "param_groups": [{"param_str_match": "bias", "weight_decay": 0.0}],
    }
    optimizer = build_optimizer(model, "paged_adamw_8bit", config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-2, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    before = bits_of(model)
    backward(model, 0)
    optimizer.step()
    assert not any(torch.equal(left, right) for left, right in zip(before, bits_of(model), strict=True))


def test_every_entry_point_is_the_class_of_its_name() -> None:
    assert {name: found.load() for name, found in entry_points().items()} == {
        "paged_adamw": PagedAdamW,
        "paged_adamw_8bit": PagedAdamW8bit,
        "paged_adamw_32bit": PagedAdamW32bit,
    }


# -- Axolotl -----------------------------------------------------------------------------------------------------------


class Settings(dict[str, Any]):
    """Axolotl's: what is not set is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


@pytest.fixture
def axolotl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the one module that a plugin imports in place, unless Axolotl is installed."""
    if importlib.util.find_spec("axolotl") is not None:
        return
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    monkeypatch.delitem(sys.modules, "pagedopt.integrations.axolotl", raising=False)


@pytest.mark.framework("axolotl", "`plugins: [pagedopt.integrations.axolotl.PagedAdamWPlugin]`")
def test_the_plugin_gives_the_trainer_a_paged_optimizer(axolotl: None, tmp_path: Path) -> None:
    for package in ("transformers", "pydantic"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'pagedopt[hf]'")
    from small import assert_paged, byte_rows, new_llama
    from transformers import Trainer, TrainingArguments

    module, _, name = "pagedopt.integrations.axolotl.PagedAdamWPlugin".rpartition(".")
    plugin = getattr(importlib.import_module(module), name)()

    module, _, name = plugin.get_input_args().rpartition(".")
    schema = getattr(importlib.import_module(module), name)
    options = {"optim_bits": 8, "page_size": "64KiB", "max_host_memory": "64KiB", "prefetch_depth": 0}
    cfg = Settings(schema(paged_adamw=options).model_dump(), optimizer="adamw_torch")

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        learning_rate=3e-3,
        adam_beta2=0.95,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )

    class AxolotlTrainer(Trainer):
        """Axolotl's: groups with rates and decays of their own, of the arguments that the plugin gave."""

        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            cls, kwargs = self.optimizer_cls_and_kwargs
            decayed = set(self.get_decay_parameter_names(self.model))
            kinds: dict[str, list[Any]] = {"decayed": [], "embeddings": [], "others": []}
            for name, param in self.model.named_parameters():
                is_embedding = any(part in name for part in ("embed_tokens", "lm_head"))
                kinds["embeddings" if is_embedding else "decayed" if name in decayed else "others"].append(param)
            lr, decay = kwargs["lr"], {"decayed": 0.1, "embeddings": 0.0, "others": 0.0}
            lrs = {"decayed": lr, "embeddings": 0.5 * lr, "others": lr}
            groups = [{"params": kinds[k], "weight_decay": decay[k], "lr": lrs[k]} for k in kinds]
            self.optimizer = cls(groups, **kwargs)
            return self.optimizer

    trainer = AxolotlTrainer(model=new_llama(), args=arguments, train_dataset=byte_rows())  # type: ignore[arg-type]
    plugin.post_trainer_create(cfg, trainer)
    for callback in plugin.add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    trainer.train()

    optimizer = trainer.optimizer.optimizer  # type: ignore[union-attr]
    assert isinstance(optimizer, PagedAdamW)
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.9, 0.95)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [3e-3, 1.5e-3, 3e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    assert_paged(optimizer)
    assert any("paging/read_bytes" in entry for entry in trainer.state.log_history)
