"""A training loop with resident and with paged state: the time of a whole step, and the most memory it took.

Resident, paged and torch's optimizer take turns on one model, each with its own state; peaks are taken before, from
each alone. All must come to the same loss from the same start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from bench import peers
from bench.accelerator import Accelerator
from bench.cases import Options
from bench.measure import Candidate, Ready, Verdict, compete
from bench.results_file import Contest
from bench.transformer import ONE_BILLION, TINY, Size, Transformer
from pagedopt import AdamW8bit, PagedAdamW8bit
from pagedopt.paging.config import PagingConfig

RESIDENT = "resident"
PAGED = "paged 0 %"
CHECKED_STEPS = 3
SAME_LOSS = 0.01
"""Kernels of a GPU's backward pass add in no fixed order, and three steps of a new model carry that on."""

_LR = 1e-4


class Loop:
    """One model and its batches, for every optimizer in turn.

    Attributes:
        facts: what was counted, by name.
    """

    def __init__(self, accelerator: Accelerator, size: Size, micro_batches: int) -> None:
        self.accelerator = accelerator
        before = accelerator.allocated_nbytes()
        with accelerator.device:
            self.model = Transformer(size).to(torch.bfloat16)
        shape = (micro_batches, size.sequences, size.context)
        tokens = torch.randint(size.vocabulary, shape, generator=torch.Generator().manual_seed(0))
        self._batches = list(tokens.to(accelerator.device))
        self._model_nbytes = accelerator.allocated_nbytes() - before
        self._loss: float | None = None
        self.facts: dict[str, float] = {
            "parameters": sum(param.numel() for param in self.model.parameters()),
            "tokens a step": micro_batches * size.micro_batch_tokens,
        }

    def prepare(self, name: str, make: Callable[[list[Tensor]], Optimizer]) -> Ready:
        """Train the model from its start for a few steps with a new optimizer, and note the peak."""
        self.model.reset(seed=0)
        others = self.accelerator.allocated_nbytes() - self._model_nbytes
        self.accelerator.reset_peak()
        optimizer = make(list(self.model.parameters()))
        losses = [self.step(optimizer) for _ in range(CHECKED_STEPS)]
        self.accelerator.synchronize()
        self.facts[f"{name}: peak bytes"] = self.accelerator.peak_nbytes() - others
        return Ready(partial(self.step, optimizer), self._verdict(losses[-1].item()))

    def step(self, optimizer: Optimizer) -> Tensor:
        """Return the loss of one training step, detached."""
        total = torch.zeros((), device=self.accelerator.device)
        for batch in self._batches:
            loss = self.model(batch) / len(self._batches)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        return total

    def _verdict(self, loss: float) -> Verdict:
        if self._loss is None:
            self._loss = loss
        return Verdict(abs(loss - self._loss) / self._loss, SAME_LOSS, "the first one's loss")


def training_contest(
    case: str, micro_batches: int, options: Options, accelerator: Accelerator, page_nbytes: int
) -> Contest:
    """Time whole training steps."""
    loop = Loop(accelerator, TINY if options.quick else ONE_BILLION, micro_batches)
    device = accelerator.device
    budget = PagingConfig().working_set * page_nbytes
    budgets = {"max_host_memory": budget} if device.type == "cpu" else {"max_gpu_memory": budget, "max_host_memory": 0}
    paged = partial(
        PagedAdamW8bit,
        lr=_LR,
        page_size=page_nbytes,
        spill_dir=options.spill_dir,
        **budgets,  # type: ignore[arg-type]
    )
    makers: list[tuple[str, Callable[[list[Tensor]], Optimizer]]] = [
        (RESIDENT, partial(AdamW8bit, lr=_LR)),
        (PAGED, paged),
        (peers.TORCH_FUSED.name, partial(TorchAdamW, lr=_LR, fused=True)),
    ]
    ours = peers.backend_in_use(device)
    candidates = [
        Candidate(name, partial(loop.prepare, name, make), "" if name == peers.TORCH_FUSED.name else ours)
        for name, make in makers
    ]
    timings, refusals = compete(candidates, effort=options.effort, clock=accelerator.clock, say=options.say)
    parameters, tokens = loop.facts["parameters"], loop.facts["tokens a step"]
    title = f"training, {parameters / 1e9:.2g} x 10^9 bfloat16 parameters, {tokens:g} tokens a step"
    return Contest(case, title, 0, RESIDENT, "", tuple(timings), tuple(refusals), loop.facts)
