"""Parameter groups for a model: what decays, and what has 32-bit state."""

from __future__ import annotations

import torch
from torch import nn

from pagedopt import PagedAdamW8bit
from pagedopt.integrations.groups import parameter_groups


def new_model() -> nn.Module:
    model = nn.Module()
    model.embedding = nn.Embedding(100, 64)
    model.linear = nn.Linear(64, 100)
    model.norm = nn.LayerNorm(64)
    model.head = nn.Linear(64, 100, bias=False)
    model.head.weight = model.embedding.weight
    model.frozen = nn.Linear(64, 100).requires_grad_(False)
    return model


def test_embeddings_tied_or_not_have_32_bit_state_and_vectors_no_decay() -> None:
    model = new_model()
    groups = parameter_groups(model, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [1, 1, 3]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    optimizer = PagedAdamW8bit(groups)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[model.embedding.weight]["exp_avg"].dtype == torch.float32
    assert optimizer.state[model.linear.weight]["exp_avg"].dtype == torch.int8
    assert model.frozen.weight not in optimizer.state


def test_a_model_without_embeddings_has_no_empty_group() -> None:
    groups = parameter_groups(nn.Linear(8, 8, bias=False))
    assert len(groups) == 1
    assert parameter_groups(nn.Embedding(4, 4), embedding_bits=8)[0]["optim_bits"] == 8
