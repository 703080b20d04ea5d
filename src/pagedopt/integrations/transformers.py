"""For `transformers.Trainer` and what is made from it.

Trainer(..., optimizer_cls_and_kwargs=(PagedAdamW8bit, {"lr": 2e-5}), callbacks=[PagingCallback()])
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pagedopt import live
from pagedopt.integrations.report import MOVED, paging_report
from pagedopt.observe.optimizers import paged_optimizer_of


class PagingCallback(TrainerCallback):
    """Adds to every log of a training step what paging did since the log before it.

    The numbers are in `trainer.state.log_history` and in what is printed. A reporter that Trainer makes itself
    (`report_to="wandb"`) comes before all callbacks and does not see them; with `report_to="none"` and
    `callbacks=[PagingCallback(), WandbCallback()]` it does.
    """

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer calls by these names
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        optimizer: Any = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Add the numbers to `logs`; an evaluation's log, and one of another optimizer, is left alone."""
        paged = paged_optimizer_of(optimizer)
        if logs is None or paged is None or "loss" not in logs:
            return
        total = paging_report(paged)
        report = {**total, **{name: total[name] - self._before.get(name, 0) for name in MOVED}}
        self._before = total
        logs.update(report)
        state.log_history[-1].update(report)


class LiveCallback(TrainerCallback):
    """Shows in one line of the terminal what paging does, as `pagedopt.live` has it, for as long as Trainer trains.

    Trainer's own bar writes to the same line: give it `disable_tqdm=True`.
    """

    def __init__(self) -> None:
        self._live: live | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer calls by these names
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        optimizer: Any = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Begin the line, in the main process, if the optimizer is one of pagedopt's."""
        paged = paged_optimizer_of(optimizer)
        if paged is not None and state.is_world_process_zero:
            self._live = live(paged).__enter__()

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """End the line."""
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None
