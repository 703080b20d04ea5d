"""The parameters that a `config.json` of a well-known family of decoders means, named and ordered as transformers has
them: one function for the decoders that are alike, told apart by a row of a table, and one for GPT-2.

This is for machines without transformers, and spares others the seconds of importing it; what is not known here
`costs.meta_model` asks transformers for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from pagedopt.costs.config_fields import Fields, classes_of
from pagedopt.costs.decoder_parts import Decoder, Experts, attention, feed_forward, layer
from pagedopt.costs.weights import Weight

_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_DEEPSEEK = Experts(
    ("n_routed_experts", "num_local_experts"),
    "moe_intermediate_size",
    shared="shared_experts",
    num_shared="n_shared_experts",
    router_first=False,
    layers="later",
)
_QWEN2 = Experts(
    ("num_experts", "num_local_experts"),
    "moe_intermediate_size",
    shared="shared_expert",
    shared_width="shared_expert_intermediate_size",
    has_shared_gate=True,
    layers="sparse",
)
_QWEN3 = Experts(_QWEN2.number, "moe_intermediate_size", router_first=False, layers="sparse")

DECODERS = {
    "deepseek_v2": Decoder(is_latent=True, experts=_DEEPSEEK),
    "deepseek_v3": Decoder(is_latent=True, experts=_DEEPSEEK),
    "gemma": Decoder(head_dim=256, is_tied=True),
    "gemma2": Decoder(norms=_FOUR_NORMS, head_dim=256, is_tied=True),
    "gemma3_text": Decoder(norms=_FOUR_NORMS, qk_norm="head", head_dim=256, is_tied=True),
    "granite": Decoder(),
    "llama": Decoder(),
    "mistral": Decoder(),
    "mixtral": Decoder(experts=Experts(("num_local_experts",), "intermediate_size")),
    "olmo2": Decoder(norms=_FOUR_NORMS[1::2], qk_norm="all"),
    "olmoe": Decoder(qk_norm="all", experts=Experts(_QWEN2.number, "intermediate_size")),
    "phi3": Decoder(is_fused=True),
    "qwen2": Decoder(qkv_bias=True),
    "qwen2_moe": Decoder(qkv_bias=True, experts=_QWEN2),
    "qwen3": Decoder(qk_norm="head", head_dim=128),
    "qwen3_moe": Decoder(qk_norm="head", experts=_QWEN3),
    "smollm3": Decoder(is_tied=True),
}

FAMILIES = (*sorted([*DECODERS, "gpt2"]),)
"""The `model_type`s that are known."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def is_known(config: Mapping[str, Any]) -> bool:
    """Return whether the parameters of `config` are known here: a causal language model of a known family."""
    return config.get("model_type") in FAMILIES and all(name.endswith(_CAUSAL) for name in classes_of(config))


def weights_of_config(config: Mapping[str, Any], name: str) -> tuple[Weight, ...]:
    """Return the parameters of the causal language model of a known family that `config` describes.

    Args:
        config: one that `is_known`.
        name: what to call it in an error.

    Raises:
        SizesError: a field is missing or makes no sense.
    """
    family, fields = config["model_type"], Fields(config, name)
    return tuple(_gpt2(fields) if family == "gpt2" else _decoder(fields, DECODERS[family]))


def _decoder(fields: Fields, family: Decoder) -> Iterator[Weight]:
    hidden, dtype, vocabulary = fields.count("hidden_size"), fields.dtype, fields.count("vocab_size")
    yield Weight("model.embed_tokens.weight", (vocabulary, hidden), dtype)
    for number in range(fields.count("num_hidden_layers")):
        prefix = f"model.layers.{number}"
        yield from attention(fields, family, f"{prefix}.self_attn")
        yield from feed_forward(fields, family, f"{prefix}.mlp", number)
        for norm in family.norms:
            yield Weight(f"{prefix}.{norm}.weight", (hidden,), dtype)
    yield Weight("model.norm.weight", (hidden,), dtype)
    if not fields.flag("tie_word_embeddings", otherwise=family.is_tied):
        yield from layer("lm_head", hidden, vocabulary, dtype, bias=False)


def _gpt2(fields: Fields) -> Iterator[Weight]:
    hidden, dtype = fields.count("n_embd"), fields.dtype
    inner = fields.count("n_inner", otherwise=4 * hidden)
    yield Weight("transformer.wte.weight", (fields.count("vocab_size"), hidden), dtype)
    yield Weight("transformer.wpe.weight", (fields.count("n_positions"), hidden), dtype)
    for number in range(fields.count("n_layer")):
        layers: list[tuple[str, Callable[..., Iterator[Weight]], int, int]] = [
            ("ln_1", _layer_norm, hidden, hidden),
            ("attn.c_attn", _transposed, hidden, 3 * hidden),
            ("attn.c_proj", _transposed, hidden, hidden),
            ("ln_2", _layer_norm, hidden, hidden),
            ("mlp.c_fc", _transposed, hidden, inner),
            ("mlp.c_proj", _transposed, inner, hidden),
        ]
        for name, kind, fan_in, fan_out in layers:
            yield from kind(f"transformer.h.{number}.{name}", fan_in, fan_out, dtype)
    yield from _layer_norm("transformer.ln_f", hidden, hidden, dtype)
    if not fields.flag("tie_word_embeddings", otherwise=True):
        yield from layer("lm_head", hidden, fields.count("vocab_size"), dtype, bias=False)


def _layer_norm(name: str, _: int, size: int, dtype: torch.dtype) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (size,), dtype)
    yield Weight(f"{name}.bias", (size,), dtype)


def _transposed(name: str, fan_in: int, fan_out: int, dtype: torch.dtype) -> Iterator[Weight]:
    """GPT-2's layers keep their matrix the other way round."""
    yield Weight(f"{name}.weight", (fan_in, fan_out), dtype, linear=(fan_in, fan_out))
    yield Weight(f"{name}.bias", (fan_out,), dtype)
