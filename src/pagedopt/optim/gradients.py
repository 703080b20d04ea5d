"""Which gradients a step can use; every other is refused by name before anything is changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16))
"""Element types that parameters and gradients may have, each on its own."""


def check_gradients(params: Sequence[Tensor], grads: Sequence[Tensor | None], name_of: Callable[[Tensor], str]) -> None:
    """Raise for the first pair that cannot be stepped.

    Raises:
        TypeError: a sparse or complex gradient, or an element type other than float32, bfloat16 and float16.
        ValueError: a gradient of another shape or on another device than its parameter.
    """
    given = [grad for grad in grads if grad is not None]
    if len(given) < len(grads):
        params = [param for param, grad in zip(params, grads, strict=True) if grad is not None]
    if _are_steppable(params, given):
        return
    for param, grad in zip(params, given, strict=True):
        if not _are_steppable([param], [grad]):
            _refuse(param, grad, name_of(param))


_DTYPE, _LAYOUT = operator.attrgetter("dtype"), operator.attrgetter("layout")
_DEVICE, _SHAPE = operator.attrgetter("device"), operator.attrgetter("shape")


def _are_steppable(params: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Return whether every pair can be stepped: without Python between tensors, as steps of many small ones need it."""
    return (
        FLOATS.issuperset(map(_DTYPE, grads))
        and FLOATS.issuperset(map(_DTYPE, params))
        and {torch.strided}.issuperset(map(_LAYOUT, grads))
        and all(map(operator.eq, map(_DEVICE, grads), map(_DEVICE, params)))
        and all(map(operator.eq, map(_SHAPE, grads), map(_SHAPE, params)))
    )


def _refuse(param: Tensor, grad: Tensor, name: str) -> None:
    if grad.layout is not torch.strided:
        raise TypeError(f"the gradient of {name} is {grad.layout}; make it dense (sparse=False, or grad.to_dense())")
    if grad.is_complex() or param.is_complex():
        raise TypeError(f"{name} is complex; pass its torch.view_as_real instead")
    for what, tensor in (("parameter", param), ("gradient", grad)):
        if tensor.dtype not in FLOATS:
            raise TypeError(f"the {what} of {name} is {tensor.dtype}; float32, bfloat16 and float16 can be stepped")
    if grad.device != param.device:
        raise ValueError(f"the gradient of {name} is on {grad.device}, the parameter on {param.device}")
    raise ValueError(f"the gradient of {name} has shape {tuple(grad.shape)}, the parameter {tuple(param.shape)}")
