"""The parameters of what a decoder's layers are made of, named and ordered as transformers has them.

attention   full, or latent (DeepSeek: queries and keys pass through narrow layers)
mlp         one, or experts behind a router, with or without a shared one; the experts' matrices are two parameters
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from pagedopt.costs.config_fields import Fields
from pagedopt.costs.weights import Weight


@dataclass(frozen=True, slots=True)
class Experts:
    """In what layers with experts differ.

    Attributes:
        number: the fields, one of which says how many experts there are.
        width: the field that says how wide each is.
        shared: the name of the expert that sees everything; empty: there is none.
        shared_width: the field that says how wide it is.
        num_shared: the field that says how many of the others it is as wide as, in the place of `shared_width`.
        has_shared_gate: whether its output is scaled.
        router_first: whether the router comes before the experts.
        layers: which layers have experts: "all", "later" (after the first `first_k_dense_replace`) or "sparse" (every
            `decoder_sparse_step`th that is not in `mlp_only_layers`).
    """

    number: tuple[str, ...]
    width: str
    shared: str = ""
    shared_width: str = ""
    num_shared: str = ""
    has_shared_gate: bool = False
    router_first: bool = True
    layers: Literal["all", "later", "sparse"] = "all"


@dataclass(frozen=True, slots=True)
class Decoder:
    """In what families of decoders differ.

    Attributes:
        qkv_bias: whether q, k and v have biases, where the config does not say.
        is_fused: whether q, k and v are one layer, and gate and up another.
        norms: of each layer, in their order.
        qk_norm: what q and k are normalized by: "head" values, "all" of them, or "" for not at all.
        head_dim: where the config does not say; 0: hidden size / heads.
        is_tied: whether the output head is the embedding, where the config does not say.
        is_latent: whether attention is latent.
        experts: what layers have in the place of the MLP; None: nothing.
    """

    qkv_bias: bool = False
    is_fused: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norm: str = ""
    head_dim: int = 0
    is_tied: bool = False
    is_latent: bool = False
    experts: Experts | None = None


def layer(name: str, fan_in: int, fan_out: int, dtype: torch.dtype, *, bias: bool) -> Iterator[Weight]:
    """Yield the parameters of a linear layer."""
    yield Weight(f"{name}.weight", (fan_out, fan_in), dtype, linear=(fan_in, fan_out))
    if bias:
        yield Weight(f"{name}.bias", (fan_out,), dtype)


def attention(fields: Fields, family: Decoder, name: str) -> Iterator[Weight]:
    """Yield the parameters of a layer's attention."""
    return _latent_attention(fields, name) if family.is_latent else _full_attention(fields, family, name)


def _full_attention(fields: Fields, family: Decoder, name: str) -> Iterator[Weight]:
    hidden, heads, dtype = fields.count("hidden_size"), fields.count("num_attention_heads"), fields.dtype
    head_dim = fields.count("head_dim", otherwise=family.head_dim or hidden // heads)
    queries, keys = heads * head_dim, fields.count("num_key_value_heads", otherwise=heads) * head_dim
    has_biases = fields.flag("attention_bias", otherwise=False)
    qkv_bias = has_biases or fields.flag("qkv_bias", otherwise=family.qkv_bias)
    o_bias = has_biases and not family.qkv_bias
    if family.is_fused:
        yield from layer(f"{name}.o_proj", queries, hidden, dtype, bias=o_bias)
        yield from layer(f"{name}.qkv_proj", hidden, queries + 2 * keys, dtype, bias=qkv_bias)
    else:
        for letter, size in (("q", queries), ("k", keys), ("v", keys)):
            yield from layer(f"{name}.{letter}_proj", hidden, size, dtype, bias=qkv_bias)
        yield from layer(f"{name}.o_proj", queries, hidden, dtype, bias=o_bias)
    if family.qk_norm:
        for letter, size in (("q", queries), ("k", keys)):
            yield Weight(f"{name}.{letter}_norm.weight", (head_dim if family.qk_norm == "head" else size,), dtype)


def _latent_attention(fields: Fields, name: str) -> Iterator[Weight]:
    hidden, heads, dtype = fields.count("hidden_size"), fields.count("num_attention_heads"), fields.dtype
    turned, plain, values = (fields.count(f) for f in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    rank, bias = fields.count("kv_lora_rank"), fields.flag("attention_bias", otherwise=False)
    queries = heads * (plain + turned)
    if fields.is_null("q_lora_rank"):
        yield from layer(f"{name}.q_proj", hidden, queries, dtype, bias=False)
    else:
        query_rank = fields.count("q_lora_rank")
        yield from layer(f"{name}.q_a_proj", hidden, query_rank, dtype, bias=bias)
        yield Weight(f"{name}.q_a_layernorm.weight", (query_rank,), dtype)
        yield from layer(f"{name}.q_b_proj", query_rank, queries, dtype, bias=False)
    yield from layer(f"{name}.kv_a_proj_with_mqa", hidden, rank + turned, dtype, bias=bias)
    yield Weight(f"{name}.kv_a_layernorm.weight", (rank,), dtype)
    yield from layer(f"{name}.kv_b_proj", rank, heads * (plain + values), dtype, bias=False)
    yield from layer(f"{name}.o_proj", heads * values, hidden, dtype, bias=bias)


def feed_forward(fields: Fields, family: Decoder, name: str, number: int) -> Iterator[Weight]:
    """Yield the parameters of the MLP of layer `number`, or of its experts."""
    if family.experts is None or not _has_experts(fields, family.experts, number):
        return _mlp(fields, family, name, fields.count("intermediate_size"))
    return _experts(fields, family, family.experts, name)


def _mlp(fields: Fields, family: Decoder, name: str, inner: int) -> Iterator[Weight]:
    hidden, dtype = fields.count("hidden_size"), fields.dtype
    bias = fields.flag("mlp_bias", otherwise=False)
    if family.is_fused:
        yield from layer(f"{name}.gate_up_proj", hidden, 2 * inner, dtype, bias=bias)
    else:
        yield from layer(f"{name}.gate_proj", hidden, inner, dtype, bias=bias)
        yield from layer(f"{name}.up_proj", hidden, inner, dtype, bias=bias)
    yield from layer(f"{name}.down_proj", inner, hidden, dtype, bias=bias)


def _has_experts(fields: Fields, experts: Experts, number: int) -> bool:
    if experts.layers == "later":
        return number >= fields.count("first_k_dense_replace", least=0)
    if experts.layers == "sparse":
        is_turn = (number + 1) % fields.count("decoder_sparse_step", otherwise=1) == 0
        return is_turn and number not in fields.numbers("mlp_only_layers")
    return True


def _experts(fields: Fields, family: Decoder, experts: Experts, name: str) -> Iterator[Weight]:
    hidden, dtype = fields.count("hidden_size"), fields.dtype
    number, width = fields.count(*experts.number), fields.count(experts.width)
    router = Weight(f"{name}.gate.weight", (number, hidden), dtype)
    if experts.router_first:
        yield router
    yield Weight(f"{name}.experts.gate_up_proj", (number, 2 * width, hidden), dtype)
    yield Weight(f"{name}.experts.down_proj", (number, hidden, width), dtype)
    if not experts.router_first:
        yield router
    if experts.shared:
        inner = fields.count(experts.num_shared) * width if experts.num_shared else fields.count(experts.shared_width)
        yield from _mlp(fields, family, f"{name}.{experts.shared}", inner)
    if experts.has_shared_gate:
        yield from layer(f"{name}.shared_expert_gate", hidden, 1, dtype, bias=False)
