"""Optimizers to be watched: found inside what wraps them, and heard at the beginning and end of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from pagedopt.optim.base import PagedOptimizer
from pagedopt.paging.device import DevicePager


def paged_optimizer_of(optimizer: Any) -> PagedOptimizer | None:
    """Return the optimizer of pagedopt that `optimizer` is or wraps (accelerate and Lightning wrap), if any."""
    while not isinstance(optimizer, PagedOptimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or inner is optimizer:
            return None
        optimizer = inner
    return optimizer


def paged_optimizers_of(watched: Any) -> list[PagedOptimizer]:
    """Return the optimizers of pagedopt that an optimizer, or each of several, is or wraps.

    Raises:
        TypeError: there is none, or something else among them.
    """
    given = list(watched) if isinstance(watched, Iterable) else [watched]
    found = [paged_optimizer_of(optimizer) for optimizer in given]
    optimizers = [optimizer for optimizer in found if optimizer is not None]
    if not optimizers or len(optimizers) < len(given):
        names = ", ".join(type(optimizer).__name__ for optimizer in given)
        raise TypeError(f"this takes an optimizer of pagedopt, or several, not [{names}]")
    return optimizers


def device_pagers_of(optimizer: PagedOptimizer) -> dict[torch.device, DevicePager]:
    """Return the pagers that `optimizer` uses, by device; those of its parameters are made if they are not yet."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    devices = {param.device for param in params if param.device.type != "meta"}
    for device in devices:
        optimizer.pager.on(device)
    return optimizer.pager.devices()


class StepListener:
    """Calls `before` and `after` at each `step()` of some optimizers, until it is closed.

    An optimizer whose step raises calls no `after`.
    """

    def __init__(
        self,
        optimizers: Iterable[PagedOptimizer],
        before: Callable[[PagedOptimizer], None],
        after: Callable[[PagedOptimizer], None],
    ) -> None:
        self._handles = []
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(lambda stepping, *_: before(stepping)))
            self._handles.append(optimizer.register_step_post_hook(lambda stepping, *_: after(stepping)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
