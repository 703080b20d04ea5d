"""Hypothesis strategies for the optimizers' laws: models, what happens to them in training, and how state is paged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from oracle import random_grads

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Empty, 0-d, one value, below and at a block, narrow rows, rows with a short last block, a size around min_8bit_size.
SMALL_SHAPES = (
    (0,),
    (),
    (1,),
    (7,),
    (255,),
    (256,),
    (33, 3),
    (16, 16),
    (3, 257),
    (4, 300),
    (64, 64),
    (65, 63),
    (4097,),
)

# Each is several pages in 32 bits and more than one page of 64 KiB in 8 bits.
LARGE_SHAPES = ((300, 257), (100, 1000), (70_001,), (3, 40_000), (2500, 40), (20, 30, 200))


@dataclass(frozen=True)
class Model:
    """Shapes and dtypes of parameters, and which of the two param groups each is in."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    in_second_group: tuple[bool, ...]
    seed: int

    def params(self) -> list[Parameter]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            Parameter(torch.randn(shape, generator=generator).to(dtype))
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]

    def groups(self, params: list[Parameter]) -> list[dict[str, Any]]:
        """Two groups with other hyperparameters; the first or second may be empty."""
        second = [p for p, is_second in zip(params, self.in_second_group, strict=True) if is_second]
        first = [p for p, is_second in zip(params, self.in_second_group, strict=True) if not is_second]
        return [{"params": first}, {"params": second, "lr": 3e-2, "betas": (0.8, 0.95), "weight_decay": 0.3}]


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Many small parameters and a few large ones, in any order, of mixed dtypes."""
    large = draw(st.lists(st.sampled_from(LARGE_SHAPES), min_size=1, max_size=3))
    small = draw(st.lists(st.sampled_from(SMALL_SHAPES), max_size=20))
    shapes = tuple(draw(st.permutations(large + small)))
    count = len(shapes)
    dtypes = draw(
        st.one_of(
            st.sampled_from(DTYPES).map(lambda dtype: (dtype,) * count),
            st.tuples(*[st.sampled_from(DTYPES)] * count),
        )
    )
    in_second_group = draw(st.tuples(*[st.booleans()] * count))
    return Model(shapes, dtypes, in_second_group, draw(st.integers(0, 2**31)))


@dataclass(frozen=True)
class Course:
    """What happens in training: at each step which parameters have a gradient, and how large gradients are."""

    present: tuple[tuple[bool, ...], ...]
    scales: tuple[float, ...]
    scheduler: str | None
    seed: int

    @property
    def num_steps(self) -> int:
        return len(self.present)

    def gradients(self, params: list[Parameter], step: int) -> list[Tensor | None]:
        grads = random_grads(params, seed=self.seed + step, scale=self.scales[step])
        return [g if has_one else None for g, has_one in zip(grads, self.present[step], strict=True)]

    def new_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return a scheduler that writes lr (and for the one-cycle policy betas) into the groups, or None."""
        schedulers = torch.optim.lr_scheduler
        if self.scheduler == "step":
            return schedulers.StepLR(optimizer, step_size=2, gamma=0.5)
        if self.scheduler == "cosine":
            return schedulers.CosineAnnealingLR(optimizer, T_max=5)
        if self.scheduler == "one-cycle":
            return schedulers.OneCycleLR(optimizer, max_lr=1e-2, total_steps=self.num_steps + 1)
        return None


@st.composite
def courses(draw: st.DrawFn, model: Model, *, max_steps: int = 5) -> Course:
    num_steps = draw(st.integers(1, max_steps))
    count = len(model.shapes)
    often = st.sampled_from((True, True, True, False))
    present = draw(st.lists(st.tuples(*[often] * count), min_size=num_steps, max_size=num_steps))
    scales = draw(st.lists(st.sampled_from((1e-3, 0.1, 1.0, 30.0)), min_size=num_steps, max_size=num_steps))
    scheduler = draw(st.sampled_from((None, "step", "cosine", "one-cycle")))
    return Course(tuple(present), tuple(scales), scheduler, draw(st.integers(0, 2**31)))


@dataclass(frozen=True)
class Machine:
    """How state is paged: the size of a page, how far ahead, and how many frames above the working set."""

    page_size: int | str
    prefetch_depth: int
    spare_pages: int


def machines() -> st.SearchStrategy[Machine]:
    page_sizes = st.sampled_from(("64KiB", 65_537, 100_000, "128KiB"))
    return st.builds(Machine, page_sizes, st.integers(0, 3), st.integers(0, 6))


STATE_KINDS: dict[str, dict[str, Any]] = {
    "32": {"optim_bits": 32},
    "32-amsgrad": {"optim_bits": 32, "amsgrad": True},
    "32-maximize": {"optim_bits": 32, "maximize": True},
    "32-clipped": {"optim_bits": 32, "percentile_clipping": 30},
    "8": {"optim_bits": 8},
    "8-all": {"optim_bits": 8, "min_8bit_size": 0},
    "8-tensor-wise": {"optim_bits": 8, "block_wise": False},
    "8-clipped": {"optim_bits": 8, "percentile_clipping": 30},
    "8-tensor-wise-clipped": {"optim_bits": 8, "block_wise": False, "percentile_clipping": 30},
}
"""Keyword arguments of `AdamW` and `PagedAdamW` for every kind of state that is kept differently."""
