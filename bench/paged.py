"""A paged step as a candidate: how much of the state is resident, what then must move, and what did.

must move in a step = 2 x (state - budget)      what is not resident comes once and goes once
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import peers
from bench.check import BETAS, EPS, LR, WEIGHT_DECAY, check, tolerance_for
from bench.measure import Candidate, Ready
from bench.workload import Shape, Workload
from pagedopt import PagedAdamW8bit
from pagedopt.paging.config import PagingConfig

COUNTED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bytes of a paged step.

    Attributes:
        share: of the state that is resident, from 0 (as little as works) to 1.
        page_nbytes: bytes of a page; None: pagedopt's choice.
    """

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    share: float
    page_nbytes: int | None = None

    @property
    def state_nbytes(self) -> int:
        return round(peers.OURS_8BIT.state_nbytes(self.dtype) * self.shape.numel)

    @property
    def budget_nbytes(self) -> int:
        """Bytes of frames: the share, or the working set if that is more; for all of it, the last pages' ends too."""
        page_nbytes = self.page_nbytes or 0
        if self.share == 1:
            return self.state_nbytes + self.state_nbytes // 100 + 2 * page_nbytes
        return max(round(self.share * self.state_nbytes), PagingConfig().working_set * page_nbytes)

    @property
    def minimum_nbytes(self) -> int:
        """Bytes that a step must move."""
        return 2 * max(self.state_nbytes - self.budget_nbytes, 0)

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes the pager so: on a GPU, all that is not in frames is in pinned host memory."""
        if self.device.type == "cpu":
            return {"page_size": self.page_nbytes, "max_host_memory": self.budget_nbytes}
        return {"page_size": self.page_nbytes, "max_gpu_memory": self.budget_nbytes, "max_host_memory": 0}

    def config(self) -> PagingConfig:
        """Return what the budget means to the pager: the size of a page, and how many are under way."""
        return PagingConfig.parse(**self.arguments)

    @property
    def name(self) -> str:
        return f"paged {self.share:.0%}".replace("%", " %")


class Paged:
    """A `PagedAdamW8bit` within the budget of `sizes`, made when it is prepared.

    Attributes:
        moved_nbytes: by a step, as its statistics say.
    """

    def __init__(self, sizes: Sizes, spill_dir: Path | None = None) -> None:
        self.sizes = sizes
        self._spill_dir = spill_dir
        self._optimizer: PagedAdamW8bit | None = None
        self.moved_nbytes = 0.0

    def candidate(self) -> Candidate:
        sizes = self.sizes
        return Candidate(sizes.name, self._prepare, peers.backend_in_use(sizes.device))

    def _prepare(self) -> Ready:
        sizes = self.sizes
        workload = Workload(sizes.shape, sizes.dtype, sizes.device)
        self._optimizer = PagedAdamW8bit(
            workload.params,
            lr=LR,
            betas=BETAS,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            spill_dir=self._spill_dir,
            **sizes.arguments,
        )
        verdict = check(self._optimizer, workload, tolerance_for(is_8bit=True, dtype=sizes.dtype))
        self.moved_nbytes = _moved_by_step(self._optimizer)
        return Ready(self._optimizer.step, verdict, self.moved_nbytes)

    def facts(self) -> dict[str, float]:
        """Return the bytes of a step: those that must move, and those that do; nothing if it could not be prepared."""
        if self._optimizer is None:
            return {}
        sizes = self.sizes
        return {
            f"{sizes.name}: state bytes": sizes.state_nbytes,
            f"{sizes.name}: budget bytes": sizes.budget_nbytes,
            f"{sizes.name}: page bytes": sizes.config().page_nbytes(sizes.device),
            f"{sizes.name}: bytes a step must move": sizes.minimum_nbytes,
            f"{sizes.name}: bytes a step moved": self.moved_nbytes,
        }

    def close(self) -> None:
        if self._optimizer is not None:
            self._optimizer.close()


def _moved_by_step(optimizer: PagedAdamW8bit) -> float:
    """Return the bytes that a step moves between frames and tiers, whole steps from sweep to sweep."""
    optimizer.reset_paging_stats()
    for _ in range(COUNTED_STEPS):
        optimizer.step()
    stats = optimizer.paging_stats()
    return (sum(stats.bytes_read.values()) + sum(stats.bytes_written.values())) / COUNTED_STEPS
