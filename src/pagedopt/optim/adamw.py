"""The six classes: bitsandbytes' interface, argument for argument, over pages.

| class          | state   | lives                                   |
|----------------|---------|-----------------------------------------|
| AdamW          | 32 or 8 | resident, or paged with `is_paged=True` |
| AdamW8bit      | 8       | the same                                |
| AdamW32bit     | 32      | the same                                |
| PagedAdamW     | 32 or 8 | in pages, within budgets                |
| PagedAdamW8bit | 8       | in pages, within budgets                |
| PagedAdamW32bit| 32      | in pages, within budgets                |
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from pagedopt.optim.arguments import (
    HYPERPARAMETERS,
    StateOptions,
    check_hyperparameters,
    flag,
    overridden,
    refuse_unhonoured,
)
from pagedopt.optim.base import PagedOptimizer
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.pager import Pager

_PAGING = ("page_size", "max_gpu_memory", "max_host_memory", "spill_dir", "prefetch_depth", "pager")
_UNHONOURED = ("foreach", "fused", "capturable", "differentiable")
_SETTABLE = (*HYPERPARAMETERS, *(field.name for field in fields(StateOptions)), "is_paged")


class _AdamW(PagedOptimizer):
    """What the two signatures share."""

    _bits: ClassVar[int | None] = None
    """Bits of the state of the 8-bit and 32-bit classes; None where `optim_bits` says."""

    def _construct(self, params: Any, arguments: dict[str, Any]) -> None:
        """Take the arguments of a constructor by name, each checked, overridden by `args` or refused."""
        paging = {name: arguments[name] for name in _PAGING}
        refuse_unhonoured(**{name: arguments[name] for name in _UNHONOURED})
        settable = {name: value for name, value in arguments.items() if name in _SETTABLE}
        settable = overridden(settable, arguments["args"])
        is_paged = flag(settable.pop("is_paged", True), "is_paged")
        hyperparameters = check_hyperparameters(settable)
        options = StateOptions(**StateOptions.parse(settable))
        options = options.overlaid({"optim_bits": self._state_bits(options.optim_bits)})
        if options.optim_bits == 8 and hyperparameters["amsgrad"]:
            raise ValueError("amsgrad=True needs 32-bit state; use a 32-bit class or set amsgrad=False")
        super().__init__(params, hyperparameters, options, _pager_of(type(self).__name__, is_paged, paging))

    def _state_bits(self, optim_bits: int) -> int:
        if self._bits is None:
            return optim_bits
        if optim_bits != 32:
            raise ValueError(
                f"{type(self).__name__} always keeps {self._bits}-bit state and takes optim_bits=32, the default, "
                f"only; got optim_bits={optim_bits}"
            )
        return self._bits


def _pager_of(name: str, is_paged: bool, paging: dict[str, Any]) -> Pager | PagingConfig:
    """Return the pager that was passed, or the configuration of a shared one."""
    pager = paging.pop("pager")
    given = {argument: value for argument, value in paging.items() if value is not None}
    if pager is not None:
        if not isinstance(pager, Pager):
            raise TypeError(f"pager must be a Pager, got {pager!r}")
        if given:
            raise ValueError(f"pager has its own {', '.join(given)}; pass them to Pager(...) instead of {name}")
        if not is_paged:
            raise ValueError("pager needs is_paged=True: without it everything is resident")
        return pager
    if is_paged:
        return PagingConfig.parse(**given)
    without_size = [argument for argument in given if argument != "page_size"]
    if without_size:
        raise ValueError(
            f"{name} keeps everything resident, so {', '.join(without_size)} would be ignored; "
            "pass is_paged=True or use a paged class"
        )
    return PagingConfig.parse(**given, max_gpu_memory=0, max_host_memory=0)


class AdamW(_AdamW):
    """AdamW with 32-bit or 8-bit state, resident or paged.

    The update is `torch.optim.AdamW`'s: Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2). All
    arithmetic is float32, whatever the dtypes of parameters and gradients:

        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        param = param * (1 - lr * weight_decay) - lr * m_hat / (sqrt(v_hat) + eps)

    With 8 bits m and sqrt(v) are kept as a byte a value and a float32 scale for 256 values of a row (Dettmers et al.
    2022), and no value of a parameter moves by more than 4 lr, beside its decay, in a step.

    Parameters are float32, bfloat16 or float16, of any shape and memory layout; gradients are any of the three too.
    Constructing takes no memory for state: pages come with the first step.

    Args:
        params: parameters, (name, parameter) pairs, or groups; a group may have its own hyperparameters and
            `optim_bits`, `min_8bit_size`, `block_wise`, `percentile_clipping`.
        lr: learning rate, a number or a 0-dimensional tensor.
        betas: decay rates of the two moments; also text such as `"(0.9, 0.95)"`.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        amsgrad: divide by the largest second moment so far; 32-bit state only.
        optim_bits: 32 or 8 bits for each moment; the 8-bit and 32-bit classes take 32, the default, only.
        args: an object whose attributes of these names override the arguments.
        min_8bit_size: parameters with fewer values keep 32-bit state.
        percentile_clipping: scale a gradient down to this percentile of its last 100 norms; 100 is off.
        block_wise: 8-bit state has one scale for 256 values of a row; else one for the whole tensor.
        is_paged: keep state in pages, within the budgets below, instead of resident.
        page_size: bytes of a page, an int or text such as `"4MiB"`.
        max_gpu_memory: bytes of state on the parameters' accelerator; 0: unlimited, None: automatic.
        max_host_memory: bytes of state in RAM, the rest goes to disk; 0: unlimited, None: what is free less a reserve.
        spill_dir: folder of the spill file; default: the system's temporary folder.
        prefetch_depth: pages read ahead of the update, and written behind it; default: 2.
        pager: a `Pager` instead of these five, to share or to keep apart a budget.
        maximize: ascend instead of descend.
        foreach: torch's; None or False, since the page kernel takes its place.
        fused: the same.
        capturable: the same.
        differentiable: the same.

    Raises:
        TypeError, ValueError: an argument that is wrong, named with its value.
        BudgetError: a budget smaller than the working set, with the smallest that works.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | str = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] | str = (0.9, 0.999),
        eps: float | str = 1e-8,
        weight_decay: float | str = 1e-2,
        amsgrad: bool = False,
        optim_bits: int = 32,
        args: object = None,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        is_paged: bool = False,
        *,
        page_size: int | str | None = None,
        max_gpu_memory: int | str | None = None,
        max_host_memory: int | str | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        prefetch_depth: int | None = None,
        pager: Pager | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._construct(params, dict(locals()))


class AdamW8bit(AdamW):
    """AdamW with 8-bit state, resident or paged.

    Arguments and errors are those of `AdamW`; `optim_bits` says nothing here, and may only be 32, its default.
    """

    _bits = 8


class AdamW32bit(AdamW):
    """AdamW with 32-bit state, resident or paged.

    Arguments and errors are those of `AdamW`; `optim_bits` says nothing here, and may only be 32, its default.
    """

    _bits = 32


class PagedAdamW(_AdamW):
    """AdamW with 32-bit or 8-bit state in pages, within budgets.

    The update is `torch.optim.AdamW`'s: Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2). All
    arithmetic is float32, whatever the dtypes of parameters and gradients:

        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        param = param * (1 - lr * weight_decay) - lr * m_hat / (sqrt(v_hat) + eps)

    With 8 bits m and sqrt(v) are kept as a byte a value and a float32 scale for 256 values of a row (Dettmers et al.
    2022), and no value of a parameter moves by more than 4 lr, beside its decay, in a step.

    Parameters are float32, bfloat16 or float16, of any shape and memory layout; gradients are any of the three too.
    Constructing takes no memory for state: pages come with the first step.

    Args:
        params: parameters, (name, parameter) pairs, or groups; a group may have its own hyperparameters and
            `optim_bits`, `min_8bit_size`, `block_wise`, `percentile_clipping`.
        lr: learning rate, a number or a 0-dimensional tensor.
        betas: decay rates of the two moments; also text such as `"(0.9, 0.95)"`.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        amsgrad: divide by the largest second moment so far; 32-bit state only.
        optim_bits: 32 or 8 bits for each moment; the 8-bit and 32-bit classes take 32, the default, only.
        args: an object whose attributes of these names override the arguments.
        min_8bit_size: parameters with fewer values keep 32-bit state.
        percentile_clipping: scale a gradient down to this percentile of its last 100 norms; 100 is off.
        block_wise: 8-bit state has one scale for 256 values of a row; else one for the whole tensor.
        page_size: bytes of a page, an int or text such as `"4MiB"`.
        max_gpu_memory: bytes of state on the parameters' accelerator; 0: unlimited, None: automatic.
        max_host_memory: bytes of state in RAM, the rest goes to disk; 0: unlimited, None: what is free less a reserve.
        spill_dir: folder of the spill file; default: the system's temporary folder.
        prefetch_depth: pages read ahead of the update, and written behind it; default: 2.
        pager: a `Pager` instead of these five, to share or to keep apart a budget.
        maximize: ascend instead of descend.
        foreach: torch's; None or False, since the page kernel takes its place.
        fused: the same.
        capturable: the same.
        differentiable: the same.

    Raises:
        TypeError, ValueError: an argument that is wrong, named with its value.
        BudgetError: a budget smaller than the working set, with the smallest that works.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | str = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] | str = (0.9, 0.999),
        eps: float | str = 1e-8,
        weight_decay: float | str = 1e-2,
        amsgrad: bool = False,
        optim_bits: int = 32,
        args: object = None,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        *,
        page_size: int | str | None = None,
        max_gpu_memory: int | str | None = None,
        max_host_memory: int | str | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        prefetch_depth: int | None = None,
        pager: Pager | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._construct(params, dict(locals()))


class PagedAdamW8bit(PagedAdamW):
    """AdamW with 8-bit state in pages, within budgets.

    Arguments and errors are those of `PagedAdamW`; `optim_bits` says nothing here, and may only be 32, its default.
    """

    _bits = 8


class PagedAdamW32bit(PagedAdamW):
    """AdamW with 32-bit state in pages, within budgets.

    Arguments and errors are those of `PagedAdamW`; `optim_bits` says nothing here, and may only be 32, its default.
    """

    _bits = 32
