"""Pages of real segments for kernel tests: laid out by `layout.fit`, poisoned wherever no array lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedopt.codecs.base import FIELDS, StateFormat
from pagedopt.kernels.args import Column, Kernel, Operands, Scalar, new_absmax
from pagedopt.layout import Grid, Segment, fit, grid_of

POISON = 0xFF
"""Four of these bytes are a NaN."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of `scalars`."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    grad_scale: float = 1.0


DEFAULTS = Recipe()


def scalars(step: int, recipe: Recipe = DEFAULTS) -> list[float]:
    """Return a row of `Operands.scalars`, folded as `kernels.args.Scalar` says."""
    beta1, beta2 = recipe.betas
    correction = 1 - beta1**step
    row = {
        Scalar.BETA1: beta1,
        Scalar.ONE_MINUS_BETA1: 1 - beta1,
        Scalar.BETA2: beta2,
        Scalar.ONE_MINUS_BETA2: 1 - beta2,
        Scalar.EPS: recipe.eps,
        Scalar.DECAY: 1 - recipe.lr * recipe.weight_decay,
        Scalar.STEP_SIZE: recipe.lr / correction,
        Scalar.DENOM_SCALE: (1 - beta2**step) ** -0.5,
        Scalar.GRAD_SCALE: recipe.grad_scale,
        Scalar.UPDATE_LIMIT: 4 * correction,
    }
    return [row[column] for column in Scalar]


@dataclass(frozen=True)
class Place:
    operand: int
    grid: Grid
    state_format: StateFormat
    segment: Segment


@dataclass
class Pages:
    """Parameters of `shapes` in pages of `capacity` bytes, each page's table and frame."""

    shapes: list[tuple[int, ...]]
    formats: list[StateFormat]
    capacity: int = 1 << 16
    places: list[list[Place]] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places.append([])
        offset = 0
        for operand, (shape, state_format) in enumerate(zip(self.shapes, self.formats, strict=True)):
            grid = grid_of(shape, torch.Size(shape).numel(), state_format)
            block = 0
            while block < grid.num_blocks:
                segment = fit(grid, state_format, block, offset, self.capacity)
                if segment is None:
                    assert offset > 0, "the capacity holds no block"
                    self.places.append([])
                    offset = 0
                    continue
                self.places[-1].append(Place(operand, grid, state_format, segment))
                block, offset = segment.stop_block, segment.offsets[0] + segment.nbytes
        self.frames = [_aligned(self.capacity) for _ in self.places]
        for places, frame in zip(self.places, self.frames, strict=True):
            for place in places:
                for array in self._arrays(place, frame):
                    array.zero_()

    def tables(self, *, staged: bool = False) -> list[Tensor]:
        return [_table(places, staged) for places in self.places]

    def state(self, operand: int) -> dict[str, Tensor]:
        """Return copies of a parameter's arrays, gathered from all its pages; absmax per segment as one each."""
        gathered: dict[str, list[Tensor]] = {}
        for places, frame in zip(self.places, self.frames, strict=True):
            for place in places:
                if place.operand == operand:
                    for f, array in zip(FIELDS[place.state_format], self._arrays(place, frame), strict=True):
                        gathered.setdefault(f.name, []).append(array.clone())
        return {name: torch.cat(arrays) for name, arrays in gathered.items()}

    def fill(self, operand: int, name: str, make: Callable[[Tensor], None]) -> None:
        """Call `make` on each array `name` of a parameter, in place."""
        for places, frame in zip(self.places, self.frames, strict=True):
            for place in places:
                for f, array in zip(FIELDS[place.state_format], self._arrays(place, frame), strict=True):
                    if place.operand == operand and f.name == name:
                        make(array)

    def free_bytes(self) -> list[Tensor]:
        """Return, for each page, the bytes that belong to no array."""
        free = []
        for places, frame in zip(self.places, self.frames, strict=True):
            mask = torch.ones(self.capacity, dtype=torch.bool)
            for place in places:
                for f, offset in zip(FIELDS[place.state_format], place.segment.offsets, strict=True):
                    mask[offset : offset + f.dtype.itemsize * place.segment.count(f.per)] = False
            free.append(frame[mask])
        return free

    def update(self, kernel: Kernel, operands: Operands) -> None:
        """One whole step: measure every page, then update every page."""
        tables = self.tables()
        for verb in (kernel.measure, kernel.update):
            for table, frame in zip(tables, self.frames, strict=True):
                verb(table, frame, operands)

    def _arrays(self, place: Place, frame: Tensor) -> list[Tensor]:
        arrays = []
        for f, offset in zip(FIELDS[place.state_format], place.segment.offsets, strict=True):
            nbytes = f.dtype.itemsize * place.segment.count(f.per)
            arrays.append(frame[offset : offset + nbytes].view(f.dtype))
        return arrays


def operands_of(
    params: list[Tensor], grads: list[Tensor | None], rows: list[list[float]], scalar_rows: list[int] | None = None
) -> Operands:
    return Operands(
        params=params,
        grads=grads,
        scalar_rows=scalar_rows or [0] * len(params),
        scalars=torch.tensor(rows, dtype=torch.float32),
        absmax=new_absmax(len(params), torch.device("cpu")),
    )


def _aligned(nbytes: int) -> Tensor:
    memory = torch.full((nbytes + 64,), POISON, dtype=torch.uint8)
    skip = -memory.data_ptr() % 64
    return memory[skip : skip + nbytes]


def _table(places: list[Place], staged: bool) -> Tensor:
    rows = []
    for place in places:
        segment = place.segment
        row = {
            Column.OPERAND: place.operand,
            Column.START: segment.start,
            Column.NUMEL: segment.numel,
            Column.ROW_WIDTH: place.grid.row_width,
            Column.FORMAT: place.state_format,
            Column.BASE: 0 if staged else segment.start,
        }
        for index, offset in enumerate(segment.offsets):
            row[Column(Column.FIELD_0 + index)] = offset
        rows.append([int(row.get(column, 0)) for column in Column])
    return torch.tensor(rows, dtype=torch.int64)
