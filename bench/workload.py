"""Parameters and gradients to step: the same values for every candidate, whatever the size, in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PARAM_STD = 0.1
GRAD_STD = 1e-3
GRAD_SCALES = (1.0, 8.0, 0.25, 2.0)
"""What the gradients of one step after another are multiplied by: a moment that is lost or misplaced then shows."""

_TILE = 1 << 20
"""Values are drawn once for so many, and repeated: drawing takes longer than all that is timed."""

_SAMPLE = 1 << 16
_TAIL = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """`count` parameters of one size."""

    count: int
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        return self.count * torch.Size(self.size).numel()

    def __str__(self) -> str:
        """Return the sizes for people: `50M values in one tensor`, `500 tensors of 64x64`."""
        values = f"{self.numel / 1e6:.4g}M values"
        return (
            f"{values} in one tensor" if self.count == 1 else f"{self.count} tensors of {'x'.join(map(str, self.size))}"
        )


class Workload:
    """Parameters with gradients.

    Attributes:
        params: leaves that require a gradient; `draw_gradients` gives them one.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.params = [
            torch.nn.Parameter(torch.empty(shape.size, dtype=dtype, device=device)) for _ in range(shape.count)
        ]
        with torch.no_grad():
            _fill(self.params, seed=0, std=PARAM_STD)

    def draw_gradients(self, step: int) -> None:
        """Give every parameter the gradient of `step`, counted from 0."""
        for param in self.params:
            if param.grad is None:
                param.grad = torch.empty_like(param)
        _fill([_grad(param) for param in self.params], seed=1 + step, std=GRAD_STD * GRAD_SCALES[step])

    def sample_params(self) -> Tensor:
        """Return some values of the parameters, float64 on the CPU: every n-th, and the last of each parameter."""
        return _sample([param.detach() for param in self.params])

    def sample_gradients(self) -> Tensor:
        """Return the gradients of the same values."""
        return _sample([_grad(param) for param in self.params])


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


@lru_cache(maxsize=8)
def _tile(seed: int, device: torch.device) -> Tensor:
    return torch.randn(_TILE, generator=torch.Generator().manual_seed(seed)).to(device)


def _fill(tensors: Sequence[Tensor], *, seed: int, std: float) -> None:
    tile = _tile(seed, tensors[0].device) * std
    start = 0
    for tensor in tensors:
        for piece in torch.split(tensor.view(-1), _TILE):
            start = start if start + piece.numel() <= _TILE else 0
            piece.copy_(tile[start : start + piece.numel()])
            start += piece.numel()


def _sample(tensors: Sequence[Tensor]) -> Tensor:
    share = max(_SAMPLE // len(tensors), 1)
    pieces = []
    for tensor in tensors:
        flat = tensor.view(-1)
        pieces += [flat[:: max(flat.numel() // share, 1)], flat[-_TAIL:]]
    return torch.cat(pieces).to("cpu", torch.float64)
