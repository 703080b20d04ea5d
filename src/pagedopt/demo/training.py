"""One training run: forward, backward, step, and what each cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pagedopt.demo.model import Shape
from pagedopt.demo.text import Corpus, batches

VALIDATION_SEQUENCES = 64
_VALIDATION_SEED = 20_000_000
"""The same bytes for every run, whatever its seed: what differs between two runs is not their yardstick."""

AfterStep = Callable[[int, float], None]
"""Told the number of the step that ended (the first is 1) and its training loss."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that runs have in common: they differ in optimizer and seed alone.

    Attributes:
        learning_rate: its peak; it rises over the first tenth of the steps and falls to a tenth along a cosine.
        num_checks: how often the validation loss is measured, at even distances.
    """

    shape: Shape
    steps: int
    device: torch.device
    batch_size: int = 8
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    num_checks: int = 10

    @property
    def check_steps(self) -> list[int]:
        return sorted({max(1, self.steps * i // self.num_checks) for i in range(1, self.num_checks + 1)})

    def rate_factor(self, step: int) -> float:
        """Return what the learning rate of `step` (the first is 0) is as a share of its peak."""
        warm_up = max(1, self.steps // 10)
        return min((step + 1) / warm_up, 0.55 + 0.45 * math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, slots=True)
class Run:
    """What one training did.

    Attributes:
        losses: training loss of each step, nats per byte.
        checks: validation loss by step, nats per byte.
        model_seconds, optimizer_seconds: of each step: forward and backward; the optimizer's step.
        state_nbytes: bytes of the tensors in the optimizer's `state`, wherever they are.
    """

    name: str
    seed: int
    losses: list[float]
    checks: dict[int, float]
    model_seconds: list[float]
    optimizer_seconds: list[float]
    state_nbytes: int

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the steps."""
        return fmean(self.losses[-max(1, len(self.losses) // 10) :])

    @property
    def final_check(self) -> float:
        """Validation loss after the last step."""
        return self.checks[len(self.losses)]

    @property
    def median_model_seconds(self) -> float:
        return median(self.model_seconds)

    @property
    def median_optimizer_seconds(self) -> float:
        return median(self.optimizer_seconds)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    corpus: Corpus,
    recipe: Recipe,
    *,
    name: str,
    seed: int,
    after_step: AfterStep,
) -> Run:
    """Train `model` as `recipe` says, with batches that depend on `seed` alone."""
    schedule = LambdaLR(optimizer, recipe.rate_factor)
    stream = batches(corpus.train, batch_size=recipe.batch_size, context=recipe.shape.context, seed=seed)
    validation = next(
        batches(corpus.validation, batch_size=VALIDATION_SEQUENCES, context=recipe.shape.context, seed=_VALIDATION_SEED)
    )
    steps: list[_Step] = []
    checks: dict[int, float] = {}
    for step in range(1, recipe.steps + 1):
        steps.append(_step(model, optimizer, next(stream), recipe.device))
        schedule.step()
        if step in recipe.check_steps:
            checks[step] = _check(model, validation, recipe.device)
        after_step(step, steps[-1].loss)
    losses, model_seconds, optimizer_seconds = (list(column) for column in zip(*steps, strict=True))
    return Run(name, seed, losses, checks, model_seconds, optimizer_seconds, _state_nbytes(optimizer))


class _Step(NamedTuple):
    loss: float
    model_seconds: float
    optimizer_seconds: float


def _step(model: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor], device: torch.device) -> _Step:
    started = _now(device)
    loss = _loss(model, batch, device)
    loss.backward()  # type: ignore[no-untyped-call]
    updating = _now(device)
    optimizer.step()
    ended = _now(device)
    optimizer.zero_grad()
    return _Step(loss.item(), updating - started, ended - updating)


def _state_nbytes(optimizer: Optimizer) -> int:
    kept = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
    inputs, targets = (part.to(device) for part in batch)
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def _check(model: nn.Module, validation: tuple[Tensor, Tensor], device: torch.device) -> float:
    return _loss(model, validation, device).item()


def _now(device: torch.device) -> float:
    """Return the time, in seconds, at which all that was asked of `device` so far is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
