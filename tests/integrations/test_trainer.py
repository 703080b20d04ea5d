"""`transformers.Trainer`: every way to give it an optimizer, and everything it does to one."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install 'pagedopt[hf]'")

import torch
from small import PAGED, assert_paged, assert_same, byte_rows, everything, new_llama
from transformers import Trainer, TrainerCallback, TrainingArguments

from pagedopt import PagedAdamW, PagedAdamW8bit
from pagedopt.integrations.groups import parameter_groups
from pagedopt.integrations.transformers import LiveCallback, PagingCallback

pytestmark = pytest.mark.framework("transformers", "`Trainer(optimizer_cls_and_kwargs=(PagedAdamW8bit, {...}))`")

STEPS = 8


class StopAtCheckpoint(TrainerCallback):
    """Interrupts a run after its first checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


class OwnTrainer(Trainer):
    """The way of a subclass."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.optimizer = PagedAdamW8bit((model or self.model).parameters(), weight_decay=0.0, **PAGED)
        return self.optimizer


def new_trainer(folder: Path, *, kind: type[Trainer] = Trainer, model: Any = None, **options: Any) -> Trainer:
    constructed = {key: options.pop(key) for key in ("optimizers", "optimizer_cls_and_kwargs") if key in options}
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "save_steps": STEPS // 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "weight_decay": 0.0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **options,
    }
    callbacks = arguments.pop("callbacks", [])
    return kind(
        model=model or new_llama(),
        args=TrainingArguments(**arguments),
        train_dataset=byte_rows(),
        callbacks=callbacks,
        **constructed,
    )


def test_every_way_to_give_an_optimizer_trains_the_same(tmp_path: Path) -> None:
    given = new_llama()
    trainers = [
        new_trainer(tmp_path, optimizer_cls_and_kwargs=(PagedAdamW8bit, dict(PAGED))),
        new_trainer(
            tmp_path, model=given, optimizers=(PagedAdamW8bit(given.parameters(), weight_decay=0.0, **PAGED), None)
        ),
        new_trainer(tmp_path, kind=OwnTrainer),
    ]
    trained = []
    for trainer in trainers:
        trainer.train()
        assert_paged(trainer.optimizer)
        trained.append({name: value.detach() for name, value in trainer.model.named_parameters()})
    assert_same(trained[0], trained[1])
    assert_same(trained[0], trained[2])


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=["plain", "accumulation", "bf16"]
)
def test_a_run_resumed_from_a_checkpoint_is_the_same_to_the_bit_and_paged(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def run(folder: Path, *, resume: bool = False, **more: Any) -> Trainer:
        trainer = new_trainer(
            folder, model=new_llama(), optimizer_cls_and_kwargs=(PagedAdamW8bit, dict(PAGED)), **options, **more
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    unbroken = run(tmp_path / "unbroken")
    interrupted = run(tmp_path / "interrupted", callbacks=[StopAtCheckpoint()])
    assert interrupted.state.global_step == STEPS // 2
    resumed = run(tmp_path / "interrupted", resume=True)

    assert resumed.state.global_step == STEPS
    assert_same(everything(unbroken.model, unbroken.optimizer), everything(resumed.model, resumed.optimizer))
    assert_paged(resumed.optimizer)


class TooLarge(torch.nn.Module):
    """Runs out of memory for more than two rows."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        if len(input_ids) > 2:
            raise RuntimeError("CUDA out of memory.")
        return self.model(input_ids=input_ids, labels=labels)


def test_auto_find_batch_size_starts_over_with_nothing_left_behind(tmp_path: Path) -> None:
    apart = {**PAGED, "max_host_memory": "128KiB"}  # a pager that no other test shares
    trainer = new_trainer(
        tmp_path,
        model=TooLarge(new_llama()),
        optimizer_cls_and_kwargs=(PagedAdamW8bit, apart),
        auto_find_batch_size=True,
        per_device_train_batch_size=3,
    )
    trainer.train()
    assert trainer.state.train_batch_size == 2
    gc.collect()
    optimizer = trainer.optimizer.optimizer
    (pager,) = optimizer._store.pager.devices().values()
    assert pager.memory.num_pages == optimizer.memory_stats().pages


def test_losses_end_within_the_spread_of_seeds_of_adamw_torch(tmp_path: Path) -> None:
    """At a rate at which the loss still falls, so that another rate, or another size of update, ends elsewhere."""
    lr = 1e-3

    def last_loss(seed: int, **how: Any) -> float:
        trainer = new_trainer(
            tmp_path, model=new_llama(seed), seed=seed, learning_rate=lr, max_steps=30, save_strategy="no", **how
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return sum(losses[-10:]) / 10

    theirs = [last_loss(seed, optim="adamw_torch") for seed in range(3)]
    ours = [last_loss(seed, optimizer_cls_and_kwargs=(PagedAdamW8bit, {**PAGED, "lr": lr})) for seed in range(3)]
    spread = max(theirs) - min(theirs)
    assert all(abs(mine - other) <= spread for mine, other in zip(ours, theirs, strict=True))


def test_logs_say_what_paging_did(tmp_path: Path) -> None:
    trainer = new_trainer(
        tmp_path,
        optimizer_cls_and_kwargs=(PagedAdamW8bit, dict(PAGED)),
        callbacks=[PagingCallback()],
        save_strategy="no",
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == STEPS
    for entry in logs:
        assert entry["paging/budget_bytes"] == 64 << 10
        assert 0 < entry["paging/resident_share"] < 1
        assert entry["paging/stalled_seconds"] >= 0
    assert len({entry["paging/read_bytes"] for entry in logs[2:]}) == 1, "each log is what was moved since the last"
    assert logs[-1]["paging/read_bytes"] > 0


def test_one_line_keeps_embeddings_in_32_bits(tmp_path: Path) -> None:
    model = new_llama()
    options = {**PAGED, "optim_bits": 8, "params": parameter_groups(model)}
    trainer = new_trainer(tmp_path, model=model, optimizer_cls_and_kwargs=(PagedAdamW, options), max_steps=1)
    trainer.train()
    state = trainer.optimizer.optimizer.state
    assert state[model.get_input_embeddings().weight]["exp_avg"].dtype == torch.float32
    assert state[model.lm_head.weight]["exp_avg"].dtype == torch.int8


def test_the_live_line_is_shown_while_trainer_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = new_trainer(
        tmp_path, optimizer_cls_and_kwargs=(PagedAdamW8bit, {"lr": 1e-3, **PAGED}), callbacks=[LiveCallback()]
    )

    trainer.train()

    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pagedopt · budget ")]
    assert len(said) == 1, "no terminal: once, at the end"
    assert "0 B a step" not in said[0]
