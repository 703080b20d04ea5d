"""Measure what 8 bits lose: the tables of docs/eight-bit.md.

    python tools/accuracy.py    writes them into the page; a test compares

All numbers come from the codecs and the optimizer of this repository, on the CPU, with fixed seeds. These give the same
bits everywhere; what is computed around them is float64, so that it does not depend on the machine in the digits shown.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import pagedopt
from pagedopt.codecs.base import BLOCK
from pagedopt.codecs.blockwise import decode_moment, encode_moment
from pagedopt.codecs.codebook import sorted_values
from pagedopt.optim import scalars

PAGE = Path(__file__).resolve().parents[1] / "docs" / "eight-bit.md"
TABLE = re.compile(r"(<!-- accuracy: (?P<name>[\w-]+) -->\n).*?(<!-- accuracy: end -->)", flags=re.DOTALL)

ROWS = 1024
BETAS, EPS = (0.9, 0.999), 1e-8


def page(text: str) -> str:
    """Return the page with every table made anew.

    Raises:
        KeyError: it asks for a table that there is not.
    """
    return TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match['name']]()}\n{match[3]}", text)


# -- tables -----------------------------------------------------------------------------------------------------------


def rounding() -> str:
    """What one encoding loses of normally distributed moments, by the values that share a scale."""
    rows = []
    for block in (64, BLOCK, 2048, ROWS * BLOCK):
        m = _normal(seed=0).view(-1, block)
        root = _normal(seed=1).abs().view(-1, block)
        rows.append(
            [
                f"{block:,}" if block < ROWS * BLOCK else f"{block:,} (a tensor)",
                _percent(_lost(m, _kept(m, signed=True))),
                _percent(_lost(root, _kept(root, signed=False))),
                f"{1 + 4 / block:.4g}",
            ]
        )
    return _table(["values that share a scale", "error of m", "error of sqrt(v)", "bytes a moment and value"], rows)


def roots() -> str:
    """What becomes of a first update in a block whose gradients differ by so many decades, by what is kept of v."""
    rows = []
    for decades in (0, 1, 2, 3, 4):
        grad = _normal(seed=2).view(ROWS, BLOCK) * torch.logspace(-decades, 0, BLOCK)
        m, v = grad * (1 - BETAS[0]), grad.square() * (1 - BETAS[1])
        exact, kept_m = _update(m, v.sqrt()), _kept(m, signed=True)
        to_nearest = torch.where(v < _smallest_kept(v), 0, _kept(v, signed=False))
        updates = [
            _update(kept_m, root)
            for root in (to_nearest.sqrt(), _kept(v, signed=False).sqrt(), _kept(v.sqrt(), signed=False))
        ]
        lost = [f"{_lost(exact, update):.2%}" if _lost(exact, update) < 1 else _largest(update) for update in updates]
        rows.append([f"10^{decades}" if decades else "1", *lost])
    head = ["gradients of a block differ by", "v, to the nearest code", "v, never to zero", "sqrt(v), as here"]
    return _table(head, rows)


def limits() -> str:
    """What updates become while a gradient is larger than the root that is kept for it, by how many times it is."""
    rows = []
    for factor in (1, 3, 10, 40):
        held = _largest_update(8, factor)
        limit, scalars.UPDATE_LIMIT = scalars.UPDATE_LIMIT, math.inf
        try:
            free = _largest_update(8, factor)
        finally:
            scalars.UPDATE_LIMIT = limit
        rows.append([str(factor), *(f"{update:.3g} lr" for update in (_largest_update(32, factor), free, held))])
    held_to = f"8 bits, {scalars.UPDATE_LIMIT:g} lr at most"
    return _table(["gradient, in multiples of its root", "32 bits", "8 bits without the limit", held_to], rows)


def training() -> str:
    """How far parameters end from those of 32-bit state, and what bfloat16 parameters alone lose."""
    rows = []
    exact = _trained(pagedopt.AdamW32bit, torch.float32)
    start = _trained(None, torch.float32)
    for name, cls, dtype in (
        ("8-bit state, float32 parameters", pagedopt.AdamW8bit, torch.float32),
        ("32-bit state, bfloat16 parameters", pagedopt.AdamW32bit, torch.bfloat16),
        ("8-bit state, bfloat16 parameters", pagedopt.AdamW8bit, torch.bfloat16),
    ):
        weight, loss = _trained(cls, dtype)
        rows.append([name, f"{_distance(weight, exact[0], start[0]):.1%}", f"{loss / exact[1]:.2f}"])
    return _table(["after 300 steps", "distance from 32-bit state", "loss, relative to it"], rows)


TABLES: dict[str, Callable[[], str]] = {"rounding": rounding, "roots": roots, "limits": limits, "training": training}


# -- measurements -----------------------------------------------------------------------------------------------------


def _normal(seed: int) -> Tensor:
    return torch.randn(ROWS * BLOCK, generator=torch.Generator().manual_seed(seed))


def _kept(values: Tensor, *, signed: bool) -> Tensor:
    """Return what is left of values after 8 bits, each row with one scale."""
    width = values.shape[-1]
    if width <= BLOCK:
        return decode_moment(*encode_moment(values, row_width=width, signed=signed), row_width=width, signed=signed)
    scaled = values / values.abs().amax(1, keepdim=True)  # blocks have at most 256 values: make one scale of many
    ones = torch.ones(*scaled.shape[:-1], width // (BLOCK - 1) + 1, BLOCK)
    padded = torch.nn.functional.pad(scaled, (0, ones.shape[1] * (BLOCK - 1) - width)).view(len(scaled), -1, BLOCK - 1)
    ones[..., 1:] = padded
    codes, absmax = encode_moment(ones.view(-1, BLOCK), row_width=BLOCK, signed=signed)
    decoded = decode_moment(codes, absmax, row_width=BLOCK, signed=signed).view(ones.shape)[..., 1:]
    return decoded.reshape(len(scaled), -1)[:, :width] * values.abs().amax(1, keepdim=True)


def _update(m: Tensor, root: Tensor) -> Tensor:
    """Return the update of a first step in multiples of lr, without the limit."""
    return (m / (1 - BETAS[0])) / (root / math.sqrt(1 - BETAS[1]) + EPS)


def _lost(exact: Tensor, kept: Tensor) -> float:
    """Return the root of the mean squared error, relative to that of the values."""
    exact, kept = exact.double(), kept.double()
    return float((exact - kept).square().mean().sqrt() / exact.square().mean().sqrt())


def _smallest_kept(v: Tensor) -> Tensor:
    """Return by block what is nearer to zero than to the smallest code."""
    return v.amax(1, keepdim=True) * float(sorted_values(signed=False)[1]) / 2


def _largest_update(bits: int, factor: float) -> float:
    """Return the largest update of 60 steps late in a training, in multiples of lr.

    One value of the block has a root of 1 and a gradient of 1; the others have the smallest root that 8 bits can keep
    beside it, and a gradient of `factor` times that.
    """
    cls = {32: pagedopt.AdamW32bit, 8: pagedopt.AdamW8bit}[bits]
    param = torch.zeros(1, BLOCK)
    optimizer = cls([param], lr=1.0, betas=BETAS, eps=EPS, weight_decay=0, min_8bit_size=1)
    small = float(sorted_values(signed=False)[1])
    root = torch.full((1, BLOCK), small)
    root[0, 0] = 1
    optimizer.state[param] = {"step": torch.tensor(1e4), "exp_avg": torch.zeros(1, BLOCK), "exp_avg_sq": root.square()}
    largest = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 32-bit state is taken in as 8-bit is meant
        for _ in range(60):
            param.grad = root * factor
            param.grad[0, 0] = 1
            param.zero_()
            optimizer.step()
            largest = max(largest, float(param[0, 1:].abs().max()))
    optimizer.close()
    return largest


def _trained(cls: type[pagedopt.AdamW] | None, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return the weights of a linear regression and its loss after 300 steps; before them where `cls` is None."""
    generator = torch.Generator().manual_seed(3)
    inputs, truth, noise, weight = (
        torch.randn(shape, generator=generator).double() for shape in ((256, 128), (128, 64), (256, 64), (64, 128))
    )
    targets, weight = inputs @ truth + 0.1 * noise, (weight / 16).to(dtype)
    optimizer = None if cls is None else cls([weight], lr=1e-2)
    for _ in range(300 if optimizer is not None else 0):
        error = inputs @ weight.double().T - targets
        weight.grad = (2 * error.T @ inputs / error.numel()).to(dtype)
        assert optimizer is not None
        optimizer.step()
    return weight.double(), float((inputs @ weight.double().T - targets).square().mean())


def _distance(weight: Tensor, exact: Tensor, start: Tensor) -> float:
    return float((weight - exact).norm() / (exact - start).norm())


# -- text -------------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _largest(update: Tensor) -> str:
    return f"up to {float(update.abs().max()):.1g} lr"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
