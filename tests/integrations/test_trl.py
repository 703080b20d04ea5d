"""TRL's trainers that do not take the argument of `Trainer`, by the attribute that it sets."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

for package in ("transformers", "datasets", "trl", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'pagedopt[hf]'")

from datasets import Dataset
from small import PAGED, assert_paged
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from pagedopt import PagedAdamW8bit

QLORA = Path(__file__).parents[2] / "examples" / "qlora_sft.py"

PAIR = {"prompt": "the sky is", "chosen": " blue", "rejected": " made of cheese"}


@pytest.mark.framework(
    "trl",
    "`trainer.optimizer_cls_and_kwargs = (PagedAdamW8bit, {...})`, for `DPOTrainer` and others without the argument",
)
def test_a_trainer_without_the_argument_trains_paged_by_the_attribute(tmp_path: Path) -> None:
    name = runpy.run_path(str(QLORA))["build_small_model"](tmp_path / "base")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(name),
        args=DPOConfig(
            output_dir=str(tmp_path),
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([PAIR] * 8),
        processing_class=AutoTokenizer.from_pretrained(name),
    )
    trainer.optimizer_cls_and_kwargs = (PagedAdamW8bit, dict(PAGED))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert_paged(trainer.optimizer)
