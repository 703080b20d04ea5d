"""One step of the parameters of one plan: what is advanced first, and the sweep that updates page by page.

`run_all` makes those of several devices one step of the optimizer: all of it, none of it, or state that is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from pagedopt.errors import StateLostError
from pagedopt.kernels.args import Kernel, Operands, new_absmax
from pagedopt.layout import Segment
from pagedopt.optim.clipping import clip_scale
from pagedopt.optim.counters import Slots, StepCounters
from pagedopt.optim.parts import local_gradient, local_tensor
from pagedopt.optim.plan import Plan, segment_row
from pagedopt.optim.scalars import ScalarTable
from pagedopt.optim.store import Store
from pagedopt.optim.strided import gather, has_shared_values, is_flat, scatter
from pagedopt.paging.sweep import sweep
from pagedopt.ranges import profiled


class Step:
    """One step of the operands of `plan` that have a gradient; `is_part`: others of its parameters have their own."""

    def __init__(
        self,
        plan: Plan,
        grads: list[Tensor | None],
        counters: StepCounters,
        kernel: Kernel,
        *,
        is_part: bool = False,
    ) -> None:
        self._is_part = is_part
        self._plan = plan
        self._kernel = kernel
        self._counters = counters
        self._params, self._grads = plan.params, grads
        if plan.is_distributed:
            self._params = [local_tensor(param) for param in plan.params]
            self._grads = [
                grad if grad is None else local_gradient(p, grad) for p, grad in zip(plan.params, grads, strict=True)
            ]
        self._stepped = [operand for operand, grad in enumerate(grads) if grad is not None]
        all_step = len(self._stepped) == len(grads)
        self._slots = plan.slots if all_step else Slots([plan.records[operand].slot for operand in self._stepped])
        self._is_live = [
            grad is not None and has_values for grad, has_values in zip(grads, plan.has_values, strict=True)
        ]
        self._strided = self._find_strided()
        self._steps_before: dict[int, Tensor] | None = None
        self._gnorms_before: dict[int, Tensor | None] = {}
        self.pages_updated = 0

    def _find_strided(self) -> dict[int, Tensor]:
        """Return the gradients of the operands that a kernel cannot take as flat memory."""
        tensors = [grad for grad in self._grads if grad is not None] + self._params
        if all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_neg, tensors)):
            return {}  # as nearly always: all of them `is_flat`, found without a call in Python for each
        strided = {
            operand: grad
            for operand, grad in enumerate(self._grads)
            if grad is not None and not (is_flat(grad) and is_flat(self._params[operand]))
        }
        for param in (self._params[operand] for operand in strided):
            if has_shared_values(param):
                raise ValueError(
                    f"a parameter of shape {tuple(param.shape)} is expanded: several of its values are one in memory; "
                    "train what it was expanded from"
                )
        return strided

    def advance(self) -> None:
        """Count the step of every live operand and fold this step's scalars."""
        plan = self._plan
        self._steps_before = self._counters.copy(self._slots)
        self._counters.add_one(self._slots)
        table = ScalarTable()
        rows = self._scalar_rows(table, self._counters.values(self._slots))
        grads = self._grads
        if self._strided:
            grads = [None if operand in self._strided else grad for operand, grad in enumerate(grads)]
        absmax = new_absmax(len(self._params) if plan.tensorwise else 0, plan.device)
        self._operands = Operands(self._params, grads, rows, table.tensor(), absmax)

    def _scalar_rows(self, table: ScalarTable, steps: list[float]) -> list[int]:
        """Return the row of every operand; those of operands that are not stepped are never read."""
        plan = self._plan
        if not plan.is_clipped and len(set(steps)) == 1:  # the usual step: one row a source
            row_of = [table.row(source, steps[0], 1.0) for source in plan.distinct_sources]
            return [row_of[source] for source in plan.source_of]
        rows = [0] * len(self._params)
        for operand, step in zip(self._stepped, steps, strict=True):
            rows[operand] = table.row(plan.sources[operand], step, self._clip(operand, int(step)))
        return rows

    def _clip(self, operand: int, step: int) -> float:
        percentile, grad = self._plan.clippings[operand], self._grads[operand]
        if percentile >= 100 or grad is None:
            return 1.0
        record = self._plan.records[operand]
        before = record.gnorm_history
        self._gnorms_before[operand] = None if before is None else before.clone()
        return clip_scale(record, self._kernel.squared_norm(grad).item(), step, percentile)

    def undo(self) -> None:
        """Take `advance` back, however far it came, for a step that ended before it updated a page."""
        if self._steps_before is not None:
            self._counters.restore(self._slots, self._steps_before)
        for operand, before in self._gnorms_before.items():
            self._plan.records[operand].gnorm_history = before

    def run(self) -> None:
        """Update every live page."""
        plan = self._plan
        plan.pager.begin_step(is_part=self._is_part)
        if plan.tensorwise:
            measured = plan.live_pages(plan.tensorwise, self._is_live)
            with closing(sweep(plan.pager, measured, dirty=False)) as pages:
                for page, frame in pages:
                    with profiled("update"):
                        self._measure(page, frame)
        with closing(sweep(plan.pager, plan.live_pages(plan.pages, self._is_live))) as pages:
            for page, frame in pages:
                self.pages_updated += 1
                with profiled("update"):
                    self._update(page, frame)
        self._mark_changed()

    def end(self) -> None:
        """Leave the memory that is needed for other things until the next step."""
        self._plan.pager.end_step()

    def _mark_changed(self) -> None:
        """Tell autograd what kernels changed through addresses; inference tensors have nothing to tell."""
        for params in (self._params, self._plan.params) if self._plan.is_distributed else (self._params,):
            changed = params if len(self._stepped) == len(params) else [params[operand] for operand in self._stepped]
            torch.autograd.graph.increment_version(changed)

    def _measure(self, page: int, frame: Tensor) -> None:
        self._kernel.measure(self._plan.tables[page], frame, self._operands)
        for operand, segment in self._strided_segments(page):
            row, operands = self._staged(operand, segment)
            self._kernel.measure(row, frame, operands)

    def _update(self, page: int, frame: Tensor) -> None:
        self._kernel.update(self._plan.tables[page], frame, self._operands)
        for operand, segment in self._strided_segments(page):
            row, operands = self._staged(operand, segment)
            self._kernel.update(row, frame, operands)
            scatter(operands.params[0], self._params[operand], segment.start)

    def _strided_segments(self, page: int) -> list[tuple[int, Segment]]:
        if not self._strided:
            return []
        return [inside for inside in self._plan.segments[page] if inside[0] in self._strided]

    def _staged(self, operand: int, segment: Segment) -> tuple[Tensor, Operands]:
        """Return the segment with contiguous copies of its values: memory of a page, whatever the parameter's size."""
        operands = self._operands
        staged = Operands(
            [gather(self._params[operand], segment.start, segment.stop)],
            [gather(self._strided[operand], segment.start, segment.stop)],
            [operands.scalar_rows[operand]],
            operands.scalars,
            operands.absmax[operand : operand + 1],
        )
        row = segment_row(0, self._plan.records[operand], segment, base=0)
        return torch.tensor([row], dtype=torch.int64, device="cpu"), staged


def run_all(steps: Sequence[Step], store: Store) -> None:
    """Advance all steps, then run them; if that ends midway, take the counters back or refuse to go on.

    Until a page is updated nothing but counters has changed, and the step can be tried again.
    """
    advanced: list[Step] = []
    try:
        with profiled("step"):
            for step in steps:
                advanced.append(step)
                step.advance()
            for step in steps:
                step.run()
    except BaseException as error:
        updated = sum(step.pages_updated for step in steps)
        if updated == 0:
            for step in advanced:
                step.undo()
            raise
        store.lose(
            StateLostError(
                f"a step ended after {updated} pages ({type(error).__name__}: {error}), so parameters and state no "
                "longer belong together; load both from a checkpoint, or clear optimizer.state and reload the model"
            )
        )
        raise
