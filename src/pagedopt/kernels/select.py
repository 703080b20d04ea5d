"""Which backend updates the parameters of a device, and why.

`PAGEDOPT_BACKEND=reference` (or native, or triton) in the environment forces one backend, or an error if it cannot run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

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
        target: what it runs on: an instruction set, a device type, or "any".
    """

    name: str
    available: bool
    reason: str
    target: str


def backends() -> tuple[Backend, ...]:
    """Return every backend, best first, and whether it can run here."""
    return (Backend("reference", available=True, reason="plain PyTorch, runs on every device", target="any"),)


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
    return _KERNELS[name]


def _best(device: torch.device) -> str:
    return next(b.name for b in backends() if b.available and b.target in ("any", device.type))


_KERNELS: dict[str, Kernel] = {"reference": ReferenceKernel()}
