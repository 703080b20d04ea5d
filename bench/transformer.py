"""A decoder-only transformer with random weights, to train for a few steps: a real loop around the optimizer's step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class Size:
    """How large the model and a micro-batch are."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    sequences: int

    @property
    def micro_batch_tokens(self) -> int:
        return self.sequences * self.context


ONE_BILLION = Size(layers=18, width=2048, heads=16, vocabulary=32_768, context=2048, sequences=4)
"""0.98 x 10^9 parameters."""

TINY = Size(layers=2, width=64, heads=2, vocabulary=128, context=16, sequences=2)


class _Block(nn.Module):
    """Attention, then a feed-forward network, each on a normalised input and added to it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.mix = nn.Linear(size.width, size.width, bias=False)
        self.feed_norm = nn.LayerNorm(size.width)
        self.widen = nn.Linear(size.width, 4 * size.width, bias=False)
        self.narrow = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x + self.narrow(functional.gelu(self.widen(self.feed_norm(x))))
        return out


class Transformer(nn.Module):
    """Predicts the next token; the embedding is also the output layer.

    Args:
        recompute: keep the inputs of blocks only and compute what is within again in the backward pass.
    """

    def __init__(self, size: Size, *, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)

    def reset(self, seed: int) -> None:
        """Draw all weights again."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for param in self.parameters():
                if param.dim() > 1:
                    param.normal_(0.0, 0.02)
            for norm in self.modules():
                if isinstance(norm, nn.LayerNorm):
                    norm.reset_parameters()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean loss of predicting each token of `tokens`, int64 [sequences, context], from those before."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
