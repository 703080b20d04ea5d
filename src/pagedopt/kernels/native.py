"""The native backend: the C++ kernels of `csrc/`, given addresses. Importing this module loads the extension.

One call updates a page, whatever it holds. In a step, Python costs about 1 µs per operand, for the table of addresses
that is made at the first page, and then about 2 µs per page.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pagedopt.kernels import _native, norm
from pagedopt.kernels.args import Operands

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

TARGETS: dict[str, bool] = dict(_native.targets())
"""The instruction sets of this build, best first, and whether this processor has them."""


class NativeKernel:
    """See `kernels.args.Kernel`: exactly the bits of the reference, with every target and number of threads.

    It runs on up to `torch.get_num_threads()` threads and needs no transient memory that grows with the parameters.
    """

    name = "native"

    def __init__(self, target: str | None = None) -> None:
        """Use the instruction set `target`, by default the best that this processor has.

        Raises:
            ValueError: there is no such target, or this processor does not have it.
        """
        supported = [name for name, is_supported in TARGETS.items() if is_supported]
        self.target = target or supported[0]
        if self.target not in supported:
            raise ValueError(f"this processor supports the targets {', '.join(supported)}, not {self.target!r}")
        self._index = list(TARGETS).index(self.target)

    def update(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        self._call(_native.update, segments, frame, operands)

    def measure(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        self._call(_native.measure, segments, frame, operands)

    def squared_norm(self, grad: Tensor) -> Tensor:
        return norm.squared_norm(grad, self._sum_of_squares)

    def _call(self, verb: Callable[..., None], segments: Tensor, frame: Tensor, operands: Operands) -> None:
        verb(
            self._index,
            segments.data_ptr(),
            len(segments),
            frame.data_ptr(),
            _addresses(operands).data_ptr(),
            operands.scalars.data_ptr(),
            operands.absmax.data_ptr(),
            torch.get_num_threads(),
        )

    def _sum_of_squares(self, run: Tensor) -> Tensor:
        if run.dtype not in _DTYPES:
            return norm.sum_of_squares(run)
        number = _native.sum_of_squares(
            self._index, run.data_ptr(), _DTYPES[run.dtype], run.numel(), torch.get_num_threads()
        )
        return torch.tensor(number, dtype=torch.float64, device="cpu")


def _addresses(operands: Operands) -> Tensor:
    table = operands.derived.get("native")
    if table is None:
        table = operands.derived["native"] = torch.tensor(
            [
                (p.data_ptr(), 0, _DTYPES[p.dtype], 0, row)
                if g is None
                else (p.data_ptr(), g.data_ptr(), _DTYPES[p.dtype], _DTYPES[g.dtype], row)
                for p, g, row in zip(operands.params, operands.grads, operands.scalar_rows, strict=True)
            ],
            dtype=torch.int64,
            device="cpu",
        )
    return table
