"""Which backend updates the parameters of a device, and why.

    native       csrc/, on a CPU: the instruction set that the processor has, or the one that PAGEDOPT_TARGET names
    triton       on a GPU; with TRITON_INTERPRET=1 on a CPU too, when asked for
    reference    plain PyTorch, anywhere

`PAGEDOPT_BACKEND=reference` (or native, or triton) in the environment forces one backend, or an error if it cannot run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch

from pagedopt.kernels.args import Kernel
from pagedopt.kernels.reference import ReferenceKernel


@dataclass(frozen=True, slots=True)
class Backend:
    """What can be said about one backend on this machine.

    Attributes:
        name: what `PAGEDOPT_BACKEND` calls it.
        available: whether it can run here.
        reason: why it can or cannot, in one sentence.
        target: what it runs on: an instruction set, a device type, "interpreter" (never chosen by itself) or "any".
    """

    name: str
    available: bool
    reason: str
    target: str


def backends() -> tuple[Backend, ...]:
    """Return every backend, best first, and whether it can run here."""
    return (
        _native(),
        _triton(),
        Backend("reference", available=True, reason="plain PyTorch, runs on every device", target="any"),
    )


def kernel_for(device: torch.device) -> Kernel:
    """Return the kernel that updates parameters on `device`.

    Warns once where the native backend would run but cannot: the reference that takes its place is many times slower.

    Raises:
        ValueError: `PAGEDOPT_BACKEND` names no backend, or one that cannot run here; or `PAGEDOPT_TARGET` an
            instruction set that this processor does not have.
    """
    forced = os.environ.get("PAGEDOPT_BACKEND") or None
    return _kernel_for(device.type, forced, os.environ.get("PAGEDOPT_TARGET"), os.environ.get("TRITON_INTERPRET"))


@lru_cache
def _kernel_for(device_type: str, forced: str | None, *_: str | None) -> Kernel:
    """Choose once for each device type and environment: a step asks every time."""
    known = {backend.name: backend for backend in backends()}
    name = _best(device_type, known) if forced is None else forced
    if name not in known:
        raise ValueError(f"PAGEDOPT_BACKEND must be one of {', '.join(known)}, got {name!r}")
    if not known[name].available:
        raise ValueError(f"PAGEDOPT_BACKEND={name} cannot run here: {known[name].reason}")
    if not _runs_on(known[name], device_type):
        raise ValueError(f"PAGEDOPT_BACKEND={name} ({known[name].target}) cannot update parameters on {device_type}")
    return _kernel(name)


def _best(device_type: str, known: Mapping[str, Backend]) -> str:
    if device_type == "cpu":
        if known["native"].available:
            return "native"
        if os.environ.get("PAGEDOPT_TARGET"):
            raise ValueError(f"PAGEDOPT_TARGET={os.environ['PAGEDOPT_TARGET']} cannot be met: {known['native'].reason}")
        warnings.warn(
            f"pagedopt's native backend cannot run, so CPU updates use plain PyTorch and are many times slower: "
            f"{known['native'].reason}; PAGEDOPT_BACKEND=reference says that this is meant",
            stacklevel=2,
        )
        return "reference"
    triton = known["triton"]
    if triton.available and triton.target == device_type:
        return "triton"
    if device_type in _ACCELERATORS:
        warnings.warn(
            f"Triton cannot run, so updates on {device_type} use plain PyTorch and are several times slower: "
            f"{triton.reason}; PAGEDOPT_BACKEND=reference says that this is meant",
            stacklevel=2,
        )
    return "reference"


def _runs_on(backend: Backend, device_type: str) -> bool:
    if backend.name == "native" or backend.target == "interpreter":
        return device_type == "cpu"
    return backend.target in ("any", device_type)


def _native() -> Backend:
    try:
        from pagedopt.kernels import native
    except ImportError as error:
        reason = f"its extension cannot be loaded ({error}); install pagedopt again where there is a C++ compiler"
        return Backend("native", available=False, reason=reason, target="none")
    try:
        kernel = native.NativeKernel(os.environ.get("PAGEDOPT_TARGET") or None)
    except ValueError as error:
        return Backend("native", available=False, reason=str(error), target="none")
    why = "PAGEDOPT_TARGET names it" if os.environ.get("PAGEDOPT_TARGET") else "the best that this processor has"
    return Backend(
        "native", available=True, reason=f"built with the {kernel.target} target, {why}", target=kernel.target
    )


_ACCELERATORS = ("cuda", "xpu")
"""Device types that Triton compiles for; AMD's GPUs are "cuda" to PyTorch."""

_OLDEST_TRITON = (3, 4)


def _triton() -> Backend:
    target = _triton_target()
    if find_spec("triton") is None:
        return Backend("triton", available=False, reason="triton is not installed", target=target or "cuda")
    if target is None:
        reason = "no NVIDIA, AMD or Intel GPU that PyTorch can use; TRITON_INTERPRET=1 runs it on a CPU, slowly"
        return Backend("triton", available=False, reason=reason, target="cuda")

    import triton

    oldest = ".".join(map(str, _OLDEST_TRITON))
    available = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= _OLDEST_TRITON
    reason = f"triton {triton.__version__}" + ("" if available else f" is too old, {oldest} is the oldest that works")
    return Backend("triton", available, reason, target)


def _triton_target() -> str | None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None and accelerator.type in _ACCELERATORS else None


def _kernel(name: str) -> Kernel:
    if name == "native":
        from pagedopt.kernels.native import NativeKernel

        return NativeKernel(os.environ.get("PAGEDOPT_TARGET") or None)
    if name == "triton":
        from pagedopt.kernels.triton_adamw import TritonKernel

        return TritonKernel()
    return ReferenceKernel()
