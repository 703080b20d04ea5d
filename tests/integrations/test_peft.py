"""PEFT: LoRA's pairs in a group each, as LoRA+ makes them."""

from __future__ import annotations

import pytest

pytest.importorskip("peft", reason="needs peft: pip install 'pagedopt[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'pagedopt[hf]'")
pytest.importorskip("bitsandbytes", reason="LoRA+ imports bitsandbytes for any class whose name ends in 8bit")

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from small import byte_rows, collate, new_llama

from pagedopt import PagedAdamW, PagedAdamW8bit

pytestmark = pytest.mark.framework("peft", "`create_loraplus_optimizer(model, PagedAdamW8bit, ...)`")


@pytest.mark.parametrize(("cls", "options"), [(PagedAdamW8bit, {}), (PagedAdamW, {"optim_bits": 8})])
def test_lora_plus_trains_its_pairs_at_two_rates_in_8_bits(cls: type, options: dict[str, int]) -> None:
    model = get_peft_model(new_llama(), LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = create_loraplus_optimizer(model, cls, lr=1e-3, loraplus_lr_ratio=16.0, **options)
    assert isinstance(optimizer, PagedAdamW)
    assert {group["lr"] for group in optimizer.param_groups if group["params"]} == {1e-3, 16e-3}
    batch = collate(byte_rows()[:4])
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    kept = {entry["exp_avg"].dtype for entry in optimizer.state.values()}
    assert torch.int8 in kept
