"""The parameters that a `config.json` of a well-known family of decoders means, named and ordered as transformers has
them: one function for the decoders that are alike, told apart by a row of a table, and one for GPT-2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pagedopt.costs.weights import DTYPES, SizesError, Weight


@dataclass(frozen=True, slots=True)
class Decoder:
    """In what families of decoders differ.

    Attributes:
        qkv_bias, o_bias, mlp_bias: whether these layers have biases, where the config does not say.
        is_fused: whether q, k and v are one layer, and gate and up another.
        norms: of each layer, in their order.
        qk_norm: what q and k are normalized by: "head" values, "all" of them, or "" for not at all.
        head_dim: where the config does not say; 0: hidden size / heads.
        is_tied: whether the output head is the embedding, where the config does not say.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    is_fused: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norm: str = ""
    head_dim: int = 0
    is_tied: bool = False


_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

DECODERS = {
    "gemma": Decoder(head_dim=256, is_tied=True),
    "gemma2": Decoder(norms=_FOUR_NORMS, head_dim=256, is_tied=True),
    "gemma3_text": Decoder(norms=_FOUR_NORMS, qk_norm="head", head_dim=256, is_tied=True),
    "granite": Decoder(),
    "llama": Decoder(),
    "mistral": Decoder(),
    "olmo2": Decoder(norms=_FOUR_NORMS[1::2], qk_norm="all"),
    "phi3": Decoder(is_fused=True),
    "qwen2": Decoder(qkv_bias=True),
    "qwen3": Decoder(qk_norm="head", head_dim=128),
    "smollm3": Decoder(is_tied=True),
}

FAMILIES = (*sorted([*DECODERS, "gpt2"]),)
"""The `model_type`s that are known."""


def weights_of_config(config: Mapping[str, Any], name: str) -> tuple[Weight, ...]:
    """Return the parameters of the causal language model that `config` describes; `name` is what to call it.

    Raises:
        SizesError: its family is not known, or a field is missing or makes no sense.
    """
    family = config.get("model_type")
    fields = _Fields(config, name)
    if family == "gpt2":
        return tuple(_gpt2(fields))
    if family in DECODERS:
        return tuple(_decoder(fields, DECODERS[family]))
    raise SizesError(
        f"{name} is of the family {family!r}, whose shapes are not known here (known are {', '.join(FAMILIES)}); "
        "give a safetensors file of it, or the model itself, which may be on the meta device"
    )


class _Fields:
    """A config whose fields are checked when they are read."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._config = config
        self._name = name

    def count(self, field: str, otherwise: int | None = None) -> int:
        value = self._config.get(field)
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SizesError(f"{self._name} must have a positive whole number as {field!r}, it has {value!r}")
        return value

    def flag(self, field: str, *, otherwise: bool) -> bool:
        value = self._config.get(field)
        return otherwise if value is None else bool(value)

    @property
    def dtype(self) -> torch.dtype:
        text = self._config.get("dtype") or self._config.get("torch_dtype") or "float32"
        return DTYPES.get(str(text).removeprefix("torch."), torch.float32)


def _layer(name: str, fan_in: int, fan_out: int, dtype: torch.dtype, *, bias: bool) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (fan_out, fan_in), dtype, linear=(fan_in, fan_out))
    if bias:
        yield Weight(f"{name}.bias", (fan_out,), dtype)


def _decoder(fields: _Fields, family: Decoder) -> Iterator[Weight]:
    hidden, dtype, vocabulary = fields.count("hidden_size"), fields.dtype, fields.count("vocab_size")
    yield Weight("model.embed_tokens.weight", (vocabulary, hidden), dtype)
    for number in range(fields.count("num_hidden_layers")):
        prefix = f"model.layers.{number}"
        yield from _attention(fields, family, f"{prefix}.self_attn")
        yield from _feed_forward(fields, family, f"{prefix}.mlp")
        for norm in family.norms:
            yield Weight(f"{prefix}.{norm}.weight", (hidden,), dtype)
    yield Weight("model.norm.weight", (hidden,), dtype)
    if not fields.flag("tie_word_embeddings", otherwise=family.is_tied):
        yield from _layer("lm_head", hidden, vocabulary, dtype, bias=False)


def _attention(fields: _Fields, family: Decoder, name: str) -> Iterator[Weight]:
    hidden, heads, dtype = fields.count("hidden_size"), fields.count("num_attention_heads"), fields.dtype
    head_dim = fields.count("head_dim", family.head_dim or hidden // heads)
    queries, keys = heads * head_dim, fields.count("num_key_value_heads", heads) * head_dim
    qkv_bias = fields.flag("attention_bias", otherwise=family.qkv_bias) or family.qkv_bias
    o_bias = fields.flag("attention_bias", otherwise=family.o_bias) and not family.qkv_bias
    if family.is_fused:
        yield from _layer(f"{name}.o_proj", queries, hidden, dtype, bias=o_bias)
        yield from _layer(f"{name}.qkv_proj", hidden, queries + 2 * keys, dtype, bias=qkv_bias)
    else:
        for letter, size in (("q", queries), ("k", keys), ("v", keys)):
            yield from _layer(f"{name}.{letter}_proj", hidden, size, dtype, bias=qkv_bias)
        yield from _layer(f"{name}.o_proj", queries, hidden, dtype, bias=o_bias)
    if family.qk_norm:
        for letter, size in (("q", queries), ("k", keys)):
            yield Weight(f"{name}.{letter}_norm.weight", (head_dim if family.qk_norm == "head" else size,), dtype)


def _feed_forward(fields: _Fields, family: Decoder, name: str) -> Iterator[Weight]:
    hidden, inner, dtype = fields.count("hidden_size"), fields.count("intermediate_size"), fields.dtype
    bias = fields.flag("mlp_bias", otherwise=family.mlp_bias)
    if family.is_fused:
        yield from _layer(f"{name}.gate_up_proj", hidden, 2 * inner, dtype, bias=bias)
    else:
        yield from _layer(f"{name}.gate_proj", hidden, inner, dtype, bias=bias)
        yield from _layer(f"{name}.up_proj", hidden, inner, dtype, bias=bias)
    yield from _layer(f"{name}.down_proj", inner, hidden, dtype, bias=bias)


def _gpt2(fields: _Fields) -> Iterator[Weight]:
    hidden, dtype = fields.count("n_embd"), fields.dtype
    inner = fields.count("n_inner", 4 * hidden)
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
        yield from _layer("lm_head", hidden, fields.count("vocab_size"), dtype, bias=False)


def _layer_norm(name: str, _: int, size: int, dtype: torch.dtype) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (size,), dtype)
    yield Weight(f"{name}.bias", (size,), dtype)


def _transposed(name: str, fan_in: int, fan_out: int, dtype: torch.dtype) -> Iterator[Weight]:
    """GPT-2's layers keep their matrix the other way round."""
    yield Weight(f"{name}.weight", (fan_in, fan_out), dtype, linear=(fan_in, fan_out))
    yield Weight(f"{name}.bias", (fan_out,), dtype)
