"""A byte-level decoder-only transformer, small enough to read at one sitting.

    bytes -> embedding + position -> depth x [norm, attention, + ; norm, MLP, +] -> norm -> logits of the next byte

Every block starts as the identity (its last two matrices are zero): so it learns from the first step on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

VOCABULARY = 256
HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """Depth in layers, width in values of the residual stream, context in bytes."""

    depth: int
    width: int
    context: int

    @property
    def num_params(self) -> int:
        """Parameters of a `Transformer` of this shape: a block has 12 width^2 and two norms."""
        per_block = 12 * self.width**2 + 2 * self.width
        return self.depth * per_block + (2 * VOCABULARY + self.context + 1) * self.width


def shape_for(num_params: int, *, context: int) -> Shape:
    """Return the smallest shape with at least `num_params` parameters, each depth being used up to its usual width."""
    depth = 1
    while Shape(depth, HEAD_WIDTH * (depth + 1), context).num_params < num_params:
        depth += 1
    width = HEAD_WIDTH
    while Shape(depth, width, context).num_params < num_params:
        width += HEAD_WIDTH
    return Shape(depth, width, context)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_out(self._attend(self.query_key_value(self.attention_norm(x))))
        mixed: Tensor = x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x))))
        return mixed

    def _attend(self, query_key_value: Tensor) -> Tensor:
        batch, context, triple = query_key_value.shape
        heads = query_key_value.view(batch, context, 3, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, context, triple // 3)


class Transformer(nn.Module):
    """Logits of the next byte at every position: int64 [batch, context] -> float32 [batch, context, 256]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width) for _ in range(shape.depth)))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)
        self.apply(_initialize)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.position.weight[: text.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def new_transformer(shape: Shape, *, seed: int, device: torch.device) -> Transformer:
    """Return a transformer whose first weights depend on `shape` and `seed` alone, whatever the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(shape).to(device)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.1)
    if isinstance(module, Block):  # after the matrices in it
        nn.init.zeros_(module.attention_out.weight)
        nn.init.zeros_(module.mlp_out.weight)
