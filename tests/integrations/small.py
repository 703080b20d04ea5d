"""A model and data that every trainer here can use: a Llama over bytes that takes milliseconds a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedopt.optim.base import PagedOptimizer

PAGED: dict[str, Any] = {"lr": 1e-2, "page_size": "64KiB", "max_host_memory": "64KiB", "prefetch_depth": 0}
"""One frame of the smallest page, so that the smallest model pages."""

LENGTH = 32


def new_llama(seed: int = 0) -> Any:
    """Return the model with the same values for the same seed; most of its parameters are 8-bit ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
        )
    )


def byte_rows(count: int = 64) -> list[dict[str, list[int]]]:
    """Return training examples: stretches of this file."""
    text = (Path(__file__).read_bytes() * 8)[: count * LENGTH]
    rows = [list(text[start : start + LENGTH]) for start in range(0, len(text), LENGTH)]
    return [{"input_ids": row, "labels": row} for row in rows]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Return a batch."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def everything(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of all parameters and all state."""
    found = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    for index, entry in optimizer.state_dict()["state"].items():
        found.update({f"{index}.{key}": value.clone() for key, value in entry.items()})
    return found


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Two dicts have the same keys and bits."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def assert_paged(optimizer: Any) -> None:
    """The state of this optimizer is larger than the budget of its pager, and some of it is in 8 bits."""
    while not isinstance(optimizer, PagedOptimizer):
        optimizer = optimizer.optimizer
    memory = optimizer.memory_stats()
    assert memory.budget_bytes is not None
    assert sum(record.nbytes for record in optimizer._store.records.values()) > memory.budget_bytes
    assert memory.resident_pages < memory.pages
    assert any("exp_avg_absmax" in entry for entry in optimizer.state.values())
