"""Python, torch, the kernels, and the packages that pagedopt works with."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from pagedopt.doctor.check import Check
from pagedopt.kernels.select import Backend, backends, kernel_for

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 6)


@dataclass(frozen=True, slots=True)
class Tested:
    """Versions of a package: `newest` is the one that the tests run with, `oldest` the least that our extra takes.

    Attributes:
        use: what it is for, here.
        extra: the extra of ours that brings it, if one does.
    """

    oldest: str
    newest: str
    use: str
    extra: str = "hf"


PACKAGES = {
    "transformers": Tested("5.20", "5.23.0", "Trainer"),
    "accelerate": Tested("1.15", "1.15.0", "Trainer, and training loops of one's own"),
    "peft": Tested("0.21", "0.21.2", "LoRA"),
    "trl": Tested("1.14", "1.16.0", "SFTTrainer and the like"),
    "datasets": Tested("4", "5.2.0", "the examples"),
    "lightning": Tested("2.6.6", "2.6.6", "Lightning's Trainer", extra=""),
    "bitsandbytes": Tested("0.50", "0.50.2", "NF4 models, and comparing with its optimizers"),
    "torchao": Tested("0.18", "0.18.0", "comparing with its optimizers", extra="bench"),
}


def python() -> Iterator[Check]:
    """Yield Python's version."""
    value = f"{platform.python_version()}, {platform.system()} on {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Check("python", "broken", value, "pagedopt needs 3.10 or newer", "install a newer Python")
    else:
        yield Check("python", "ok", value)


def torch_itself() -> Iterator[Check]:
    """Yield torch's version and what it was built for."""
    built = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "no GPU"
    )
    value = f"{torch.__version__}, built for {built}"
    if _numbers(torch.__version__)[:2] < OLDEST_TORCH:
        yield Check("torch", "broken", value, "pagedopt needs 2.6 or newer", 'pip install "torch>=2.6"')
    else:
        yield Check("torch", "ok", value)


def native_kernels() -> Iterator[Check]:
    """Yield whether the C++ extension runs, on which instruction set, and why."""
    backend = _backend("native")
    cost = "updates on a CPU use plain PyTorch, many times slower"
    if backend.available:
        yield Check("native kernels", "ok", backend.reason)
    elif importlib.util.find_spec("pagedopt.kernels._native") is None:
        remedy = "install pagedopt again where there is a C++ compiler"
        yield Check("native kernels", "missing", "the extension was not built", cost, remedy)
    else:
        remedy = "install pagedopt again on this machine; leave PAGEDOPT_TARGET unset to have the best that runs"
        yield Check("native kernels", "broken", backend.reason, cost, remedy)


def triton(*, has_accelerator: bool) -> Iterator[Check]:
    """Yield whether Triton runs."""
    backend = _backend("triton")
    if backend.available:
        yield Check("triton", "ok", f"{backend.reason}, on {backend.target}")
    elif has_accelerator:
        cost = "updates on the accelerator use plain PyTorch, many times slower"
        yield Check(
            "triton", "missing", backend.reason, cost, "pip install --upgrade triton, as torch's version wants it"
        )
    else:
        yield Check("triton", "missing", backend.reason, "nothing on this machine, which has no accelerator for it")


def backend_in_use(device: torch.device) -> Iterator[Check]:
    """Yield what would update parameters here, as the environment has it."""
    try:
        kernel = kernel_for(device)
    except ValueError as error:
        yield Check("backend", "broken", str(error), "no step can be made", "correct or unset that variable")
        return
    yield Check("backend", "ok", f"{kernel.name} updates parameters on {device.type}")


def _backend(name: str) -> Backend:
    return next(backend for backend in backends() if backend.name == name)


def packages() -> Iterator[Check]:
    """Yield the versions of the packages that we work with."""
    for name, tested in PACKAGES.items():
        yield _package(name, tested)


def _package(name: str, tested: Tested) -> Check:
    install = f'pip install "pagedopt[{tested.extra}]"' if tested.extra else f'pip install "{name}>={tested.oldest}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", f"it is for {tested.use}", install)
    value = f"{version}; tested with {tested.newest}, and {tested.oldest} or newer is asked for"
    if _numbers(version) < _numbers(tested.oldest):
        return Check(
            name, "missing", value, "it may work, and was not tested", f'pip install "{name}>={tested.oldest}"'
        )
    return Check(name, "ok", value)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
