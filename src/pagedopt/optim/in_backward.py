"""What can be done before `optimizer.step()`: whole parameters stepped as their gradients come, or pages fetched.

step_in_backward     a parameter is updated and its gradient freed as soon as the gradient is complete, so gradients of
                     the whole model never exist at the same time
fetch_in_backward    the pages that the step begins with are on their way while backward still runs

Both change nothing but time and memory: the same gradients give the same bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from pagedopt.optim.base import PagedOptimizer
from pagedopt.optim.parts import part_of


class InBackward:
    """Hooks on parameters, until `remove` is called or the `with` block ends. They do not keep the optimizer alive."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take the hooks off. May be called again."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def step_in_backward(optimizer: PagedOptimizer) -> InBackward:
    """Step each parameter during `backward()`, as soon as its gradient is complete, and free the gradient at once.

    `optimizer.step()` and `zero_grad()` may still be called, and find nothing to do; schedulers want to see the former.
    Parameters added to the optimizer later are not covered.

    What needs all gradients at the same time, or the gradient of several `backward()` calls, cannot be had: gradient
    accumulation, `clip_grad_norm_` (it would find no gradients; `percentile_clipping` works, it looks at one parameter
    at a time), `GradScaler` (its `step` raises; use bfloat16). `DistributedDataParallel` averages gradients after the
    update would have been made.

    Raises:
        ValueError: a parameter is sharded over processes, or none requires a gradient.
    """
    params = _params_of(optimizer, "step_in_backward")
    for param in params:
        if part_of(param).is_distributed:
            raise ValueError(
                "step_in_backward needs whole gradients, and a parameter of this optimizer is sharded over processes "
                "that average them after backward; call optimizer.step() instead"
            )

    optimizer_or_none = weakref.ref(optimizer)  # torch holds hooks where the garbage collector does not look

    def step(param: Tensor) -> None:
        optimizer = optimizer_or_none()
        if optimizer is None:
            raise RuntimeError(
                "the optimizer that steps during backward is gone; keep a reference to it, or remove the hooks that "
                "step_in_backward returned"
            )
        optimizer.step_param(param)
        param.grad = None

    return _hooked(params, step)


def fetch_in_backward(optimizer: PagedOptimizer) -> InBackward:
    """Begin to fetch the first pages of the next step during `backward()`, when its last gradients come.

    The last gradients are taken to be those of the optimizer's first parameters, as they are if it was given a model's
    parameters in the order of its layers. Frames are used only where there are some that hold nothing. With gradient
    accumulation the first `backward()` fetches, and the others find nothing more to do.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    params = _params_of(optimizer, "fetch_in_backward")
    first_of_device = {param.device: param for param in reversed(params)}
    optimizer_or_none = weakref.ref(optimizer)

    def fetch(_: Tensor) -> None:
        optimizer = optimizer_or_none()
        if optimizer is not None:
            optimizer.fetch_ahead()

    return _hooked(list(first_of_device.values()), fetch)


def _params_of(optimizer: PagedOptimizer, what: str) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
    if not params:
        raise ValueError(f"{what} needs a parameter that requires a gradient, and this optimizer has none")
    return params


def _hooked(params: list[Tensor], hook: Callable[[Tensor], None]) -> InBackward:
    return InBackward([param.register_post_accumulate_grad_hook(hook) for param in params])  # type: ignore[no-untyped-call]
