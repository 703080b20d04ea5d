"""Which backend updates the parameters of a device, and why.

`PAGEDOPT_BACKEND=reference` (or native, or triton) in the environment forces one backend, or an error if it cannot run.
"""

from __future__ import annotations

import os
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
        _triton(),
        Backend("reference", available=True, reason="plain PyTorch, runs on every device", target="any"),
    )


def kernel_for(device: torch.device) -> Kernel:
    """Return the kernel that updates parameters on `device`.

    Raises:
        ValueError: `PAGEDOPT_BACKEND` names no backend, or one that cannot run here.
    """
    name = os.environ.get("PAGEDOPT_BACKEND") or _best(device)
    known = {backend.name: backend for backend in backends()}
    if name not in known:
        raise ValueError(f"PAGEDOPT_BACKEND must be one of {', '.join(known)}, got {name!r}")
    if not known[name].available:
        raise ValueError(f"PAGEDOPT_BACKEND={name} cannot run here: {known[name].reason}")
    target = "cpu" if known[name].target == "interpreter" else known[name].target
    if target in ("cpu", *_ACCELERATORS) and target != device.type:
        raise ValueError(f"PAGEDOPT_BACKEND={name} runs on {target}, the parameters are on {device.type}")
    return _kernel(name)


def _best(device: torch.device) -> str:
    return next(b.name for b in backends() if b.available and b.target in ("any", device.type))


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


@lru_cache
def _kernel(name: str) -> Kernel:
    if name == "triton":
        from pagedopt.kernels.triton_adamw import TritonKernel

        return TritonKernel()
    return ReferenceKernel()
