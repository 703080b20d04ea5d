"""Three runs side by side, and the questions the demo answers about them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from pagedopt.demo.paging import STEADY_STEP, PagingUse
from pagedopt.demo.training import Run
from pagedopt.units import format_bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """The demo's runs.

    Attributes:
        baseline: torch's AdamW.
        reseeded: the same with another seed, so with other first weights and other batches.
        paged: paged 8-bit AdamW with the seed of `baseline`.
        use: what paging took and did in it.
    """

    baseline: Run
    reseeded: Run
    paged: Run
    use: PagingUse

    @property
    def paged_gap(self) -> float:
        """How far the paged curve is from the baseline's."""
        return gap(self.paged, self.baseline)

    @property
    def seed_gap(self) -> float:
        """How far another seed moves the baseline's curve."""
        return gap(self.reseeded, self.baseline)


@dataclass(frozen=True, slots=True)
class Check:
    """A question with its answer, and the numbers it was answered from."""

    question: str
    holds: bool
    numbers: str


def gap(left: Run, right: Run) -> float:
    """Return the mean over the points of two validation curves of their distance, in nats per byte."""
    return fmean(abs(left.checks[step] - right.checks[step]) for step in right.checks)


def checks(outcome: Outcome) -> list[Check]:
    """Return what must hold for the demo to pass."""
    use = outcome.use
    moved = max(use.steady_read_nbytes, use.steady_written_nbytes)
    return [
        Check(
            "the loss curves agree within the spread of two seeds",
            outcome.paged_gap <= outcome.seed_gap,
            f"{outcome.paged_gap:.4f} against {outcome.seed_gap:.4f} nats per byte",
        ),
        Check(
            "the frames never exceed the budget",
            use.frame_nbytes <= use.budget_nbytes,
            f"{format_bytes(use.frame_nbytes)} of {format_bytes(use.budget_nbytes)}",
        ),
        Check(
            f"from step {STEADY_STEP} on no step moves more than (live - budget) + working set each way",
            moved <= use.bound_nbytes,
            f"{format_bytes(moved)} of {format_bytes(use.bound_nbytes)}",
        ),
    ]
