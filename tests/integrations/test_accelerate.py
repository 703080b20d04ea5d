"""accelerate: prepare, save_state, load_state, and FSDP's plug-in aside, all that it does to an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'pagedopt[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'pagedopt[hf]'")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from small import PAGED, assert_paged, assert_same, byte_rows, collate, everything, new_llama
from torch.utils.data import DataLoader

from pagedopt import PagedAdamW8bit

pytestmark = pytest.mark.framework(
    "accelerate", "`accelerator.prepare(model, PagedAdamW8bit(model.parameters(), ...))`"
)

STEPS = 6


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings in the process; every test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(folder: Path, **options: Any) -> tuple[Accelerator, Any, Any, Any, Any]:
    accelerator = Accelerator(cpu=True, project_dir=str(folder), **options)
    model = new_llama()
    optimizer = PagedAdamW8bit(model.parameters(), **PAGED)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * STEPS)
    loader = DataLoader(byte_rows(), batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    return accelerator, *accelerator.prepare(model, optimizer, schedule, loader)


def train(accelerator: Accelerator, model: Any, optimizer: Any, schedule: Any, batches: list[Any]) -> None:
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}],
    ids=["plain", "accumulation", "bf16"],
)
def test_save_state_and_load_state_resume_to_the_bit_and_paged(tmp_path: Path, options: dict[str, Any]) -> None:
    accelerator, model, optimizer, schedule, loader = prepared(tmp_path, **options)
    batches = list(loader)[: 2 * STEPS]
    train(accelerator, model, optimizer, schedule, batches[:STEPS])
    accelerator.save_state(str(tmp_path / "state"))
    train(accelerator, model, optimizer, schedule, batches[STEPS:])
    unbroken = everything(model, optimizer.optimizer)

    accelerator, model, optimizer, schedule, _ = prepared(tmp_path, **options)
    accelerator.load_state(str(tmp_path / "state"))
    train(accelerator, model, optimizer, schedule, batches[STEPS:])

    assert_same(unbroken, everything(model, optimizer.optimizer))
    assert_paged(optimizer)


def test_prepare_leaves_a_fresh_optimizer_without_state(tmp_path: Path) -> None:
    _, _, optimizer, _, _ = prepared(tmp_path)
    assert not optimizer.optimizer.state
    assert optimizer.optimizer.memory_stats().pages == 0
