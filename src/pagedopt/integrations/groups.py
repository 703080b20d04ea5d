"""Parameter groups as most trainers make them, with embeddings in 32-bit state."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float = 1e-2, *, embedding_bits: int = 32) -> list[dict[str, Any]]:
    """Return the parameters of `model` that train in at most three groups, for any of pagedopt's optimizers.

    Weight decay is for matrices only: one-dimensional parameters (biases and norms) have none. Embeddings, whose
    gradients are sparse and uneven, have 32-bit state, which is what bitsandbytes recommends for them; a weight tied
    to an embedding is an embedding.

    Args:
        model: a model, before or after `fully_shard`.
        weight_decay: of the matrices, embeddings too.
        embedding_bits: bits of the embeddings' state, 32 or 8.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False)
    }
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = tables if id(parameter) in embeddings else matrices if parameter.dim() > 1 else vectors
            kind.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": tables, "weight_decay": weight_decay, "optim_bits": embedding_bits},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
