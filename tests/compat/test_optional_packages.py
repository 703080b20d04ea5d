"""What is optional stays optional, and nobody's package is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from child import report_of

pytestmark = pytest.mark.framework("torch.optim", "what is installed beside it")

_WITHOUT = """
import importlib, json, pkgutil, sys, warnings
from importlib.machinery import PathFinder
from pathlib import Path

ABSENT = ("accelerate", "axolotl", "bitsandbytes", "datasets", "flashoptim", "lightning", "matplotlib", "numpy", "peft",
          "torchao", "transformers", "triton", "trl")

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import torch
warnings.simplefilter("error")
import pagedopt

needs = {}
for module in pkgutil.walk_packages(pagedopt.__path__, "pagedopt."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        needs[module.name] = error.name

param = torch.nn.Parameter(torch.ones(300, 257))
param.grad = torch.ones_like(param)
optimizer = pagedopt.PagedAdamW8bit([param], page_size="64KiB", max_host_memory="64KiB", prefetch_depth=0)
optimizer.step()
pagedopt.save(optimizer, Path(sys.argv[1]))
pagedopt.load(optimizer, Path(sys.argv[1]))
optimizer.load_state_dict(optimizer.state_dict())
optimizer.step()
print(json.dumps({"needs": needs, "steps": int(optimizer.state[param]["step"])}))
"""


MAY_NEED = {
    "pagedopt.demo": ("matplotlib",),
    "pagedopt.pictures": ("matplotlib",),
    "pagedopt.integrations": ("axolotl", "transformers"),
    "pagedopt.kernels": ("triton",),
}
"""What modules are for a package of an extra, or for one that torch brings along."""


def test_the_core_needs_no_package_of_an_extra(tmp_path: Path) -> None:
    """It imports, pages, saves and loads where none is installed."""
    report = report_of(_WITHOUT, tmp_path / "checkpoint")
    assert report["steps"] == 2
    for module, package in report["needs"].items():
        room = ".".join(module.split(".")[:2])
        assert package in MAY_NEED.get(room, ()), f"{module} needs {package}"
    assert set(report["needs"].values()) == {package for packages in MAY_NEED.values() for package in packages}


_UNCHANGED = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers, accelerate
import torch.distributed.checkpoint.state_dict, torch.distributed.fsdp
from transformers import Trainer

THEIRS = ("torch", "transformers", "accelerate")  # others are not even imported

def found(module):
    '''Every attribute of a module, and of the classes that are defined in it.'''
    for name, value in list(vars(module).items()):
        yield name, value
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from ((f"{name}.{inner}", member) for inner, member in list(vars(value).items()))

def snapshot():
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in THEIRS and module}
    return {(name, inner): value for name, module in modules.items() for inner, value in found(module)}

def is_replaced(before, after):
    return after is not before and (callable(before) or isinstance(before, (classmethod, staticmethod, property)))

before = snapshot()
import pagedopt
import pagedopt.integrations.groups, pagedopt.integrations.report, pagedopt.integrations.transformers
param = torch.nn.Parameter(torch.ones(300, 257))
param.grad = torch.ones_like(param)
optimizer = pagedopt.PagedAdamW8bit([param])
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
after = snapshot()
replaced = sorted(".".join(key) for key, value in before.items() if is_replaced(value, after.get(key)))
print(json.dumps({"replaced": replaced, "seen": len(before)}))
"""


def test_nobodys_package_is_changed() -> None:
    """No function, method, class or property of a framework is another after all of ours is imported and used."""
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'pagedopt[hf]'")
    report = report_of(_UNCHANGED)
    assert report["seen"] > 10_000
    assert report["replaced"] == []
