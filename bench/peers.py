"""Who takes part: pagedopt and its peers, each as its own documentation makes it, and the reason why one cannot."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from bench.check import BETAS, EPS, LR, WEIGHT_DECAY
from bench.measure import Refusal
from pagedopt.kernels.select import backends, kernel_for

Params = Iterable[torch.nn.Parameter]

_BLOCKWISE8 = 2 * (1 + 4 / 256)
"""Bytes a value: two codes, and two float32 absmax for 256 values."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """An optimizer that takes part.

    Attributes:
        package: the distribution that it comes from.
        make: makes it for parameters, with the hyperparameters of `check`.
        state_nbytes: bytes of state a value, by dtype of the parameter.
        devices: types of devices that it runs on.
        is_slow_to_start: whether it compiles for half a minute before the first step.
    """

    name: str
    package: str
    make: Callable[[Params], Optimizer]
    state_nbytes: Callable[[torch.dtype], float]
    is_8bit: bool
    devices: frozenset[str] = frozenset({"cpu", "cuda", "xpu"})
    is_slow_to_start: bool = False

    def moved_nbytes(self, dtype: torch.dtype) -> float:
        """Return the bytes a value that a step must move: parameter and state both ways, the gradient one way."""
        return 3 * dtype.itemsize + 2 * self.state_nbytes(dtype)

    def runs(self, device: torch.device) -> str:
        """Return what does the work on `device`: the backend and its target, or the package's version."""
        version = importlib.metadata.version(self.package) if self.package != "pagedopt" else ""
        return f"{self.package} {version}" if version else backend_in_use(device)


def backend_in_use(device: torch.device) -> str:
    """Return the name of pagedopt's backend for `device` and what it runs on: `native (avx512)`."""
    name = kernel_for(device).name
    return next(f"{backend.name} ({backend.target})" for backend in backends() if backend.name == name)


def _from(package: str, path: str, **arguments: object) -> Callable[[Params], Optimizer]:
    """Return a maker of the class at `path`, imported when it is first needed: peers are optional."""
    module, _, name = path.rpartition(".")

    def make(params: Params) -> Optimizer:
        optimizer_class = getattr(importlib.import_module(module), name)
        optimizer: Optimizer = optimizer_class(
            list(params), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, **arguments
        )
        return optimizer

    assert module.split(".")[0] == package
    return make


TORCH_FUSED = Entrant(
    "torch fused", "torch", _from("torch", "torch.optim.AdamW", fused=True), lambda dtype: 2 * dtype.itemsize, False
)
TORCH_FOREACH = Entrant(
    "torch foreach", "torch", _from("torch", "torch.optim.AdamW", foreach=True), lambda dtype: 2 * dtype.itemsize, False
)
OURS_32BIT = Entrant("pagedopt 32-bit", "pagedopt", _from("pagedopt", "pagedopt.AdamW32bit"), lambda _: 8, False)
OURS_8BIT = Entrant("pagedopt 8-bit", "pagedopt", _from("pagedopt", "pagedopt.AdamW8bit"), lambda _: _BLOCKWISE8, True)
OURS_8BIT_SMALL_PAGES = Entrant(
    "pagedopt 8-bit, 16 MiB pages",
    "pagedopt",
    _from("pagedopt", "pagedopt.PagedAdamW8bit", max_gpu_memory=0, page_size="16MiB"),
    lambda _: _BLOCKWISE8,
    True,
)
"""Takes part on a GPU only, where a page is a launch: what is lost between launches."""
BITSANDBYTES_8BIT = Entrant(
    "bitsandbytes 8-bit",
    "bitsandbytes",
    _from("bitsandbytes", "bitsandbytes.optim.AdamW8bit"),
    lambda _: _BLOCKWISE8,
    True,
)
BITSANDBYTES_PAGED = Entrant(
    "bitsandbytes paged 8-bit",
    "bitsandbytes",
    _from("bitsandbytes", "bitsandbytes.optim.PagedAdamW8bit"),
    lambda _: _BLOCKWISE8,
    True,
    devices=frozenset({"cuda"}),
)
"""Takes part in the paged case of a GPU only."""
TORCHAO_8BIT = Entrant(
    "torchao 8-bit",
    "torchao",
    _from("torchao", "torchao.optim.AdamW8bit"),
    lambda _: _BLOCKWISE8,
    True,
    is_slow_to_start=True,
)
FLASHOPTIM_8BIT = Entrant(
    "flashoptim 8-bit",
    "flashoptim",
    _from("flashoptim", "flashoptim.FlashAdamW", master_weight_bits=None),
    lambda _: 2 * (1 + 2 / 32),
    True,
    devices=frozenset({"cuda"}),
)

ENTRANTS = (
    TORCH_FUSED,
    TORCH_FOREACH,
    OURS_32BIT,
    OURS_8BIT,
    BITSANDBYTES_8BIT,
    TORCHAO_8BIT,
    FLASHOPTIM_8BIT,
)


def present(device: torch.device, *, quick: bool) -> tuple[list[Entrant], list[Refusal]]:
    """Return who takes part on `device`, and who does not and why."""
    reasons = {entrant.name: absence(entrant, device, quick=quick) for entrant in ENTRANTS}
    here = [entrant for entrant in ENTRANTS if reasons[entrant.name] is None]
    return here, [Refusal(name, reason) for name, reason in reasons.items() if reason is not None]


def absence(entrant: Entrant, device: torch.device, *, quick: bool) -> str | None:
    """Return why `entrant` cannot take part on `device`, or None."""
    if device.type not in entrant.devices:
        return f"does not run on {device.type}"
    if quick and entrant.is_slow_to_start:
        return "compiles for half a minute; run without --quick"
    if importlib.util.find_spec(entrant.package) is None:
        return f"{entrant.package} is not installed; pip install -r requirements/bench.txt"
    try:
        importlib.import_module(entrant.package)
    except Exception as error:  # noqa: BLE001 - a peer's broken installation is told, and the others go on
        return f"{entrant.package} is installed but cannot be imported: {type(error).__name__}: {error}"
    return None
