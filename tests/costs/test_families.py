"""A config.json means the very parameters that transformers makes of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pagedopt.costs.families import FAMILIES, weights_of_config
from pagedopt.costs.sizes import weights_of
from pagedopt.costs.weights import SizesError, lora

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 33}


def config_of(family: str) -> dict[str, Any]:
    return {"model_type": family, **(GPT2 if family == "gpt2" else SMALL)}


def model_of(config: dict[str, Any]) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    fields = copy.deepcopy(config)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(fields.pop("model_type"), **fields), dtype=torch.float32
        )


@pytest.mark.parametrize("is_tied", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_means_the_parameters_that_transformers_makes(family: str, is_tied: bool | None) -> None:
    config = config_of(family) if is_tied is None else {**config_of(family), "tie_word_embeddings": is_tied}

    ours = [(weight.name, weight.shape) for weight in weights_of_config(config, "x")]
    theirs = [(name, tuple(param.shape)) for name, param in model_of(config).named_parameters()]

    assert ours == theirs


@pytest.mark.parametrize(
    ("family", "field"), [("llama", "attention_bias"), ("llama", "mlp_bias"), ("qwen3", "attention_bias")]
)
def test_biases_follow_the_config(family: str, field: str) -> None:
    config = {**config_of(family), field: True}

    ours = [(weight.name, weight.shape) for weight in weights_of_config(config, "x")]

    assert ours == [(name, tuple(param.shape)) for name, param in model_of(config).named_parameters()]


@pytest.mark.parametrize(
    ("family", "targets"), [("llama", ["all-linear"]), ("qwen2", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])]
)
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")  # peft asks for what transformers has renamed
def test_lora_has_the_parameters_that_peft_makes(family: str, targets: list[str]) -> None:
    peft = pytest.importorskip("peft")
    config = config_of(family)
    asked = targets[0] if targets == ["all-linear"] else targets
    transposed = {"fan_in_fan_out": True} if family == "gpt2" else {}
    model = peft.get_peft_model(
        model_of(config), peft.LoraConfig(r=4, target_modules=asked, task_type="CAUSAL_LM", **transposed)
    )

    ours = [(weight.name, weight.shape) for weight in lora(weights_of_config(config, "x"), 4, targets)]
    theirs = [
        (name.removeprefix("base_model.model."), tuple(param.shape))
        for name, param in model.named_parameters()
        if param.requires_grad
    ]

    assert ours == theirs


def test_a_family_that_is_not_known_is_an_error_that_says_what_would_help() -> None:
    with pytest.raises(SizesError, match=r"family 'mamba'.*known are gemma, .*smollm3.*safetensors file.*meta device"):
        weights_of({"model_type": "mamba"})


@pytest.mark.parametrize(("field", "value"), [("hidden_size", None), ("vocab_size", "many"), ("num_hidden_layers", 0)])
def test_a_field_that_makes_no_sense_is_named(field: str, value: object) -> None:
    with pytest.raises(SizesError, match=field):
        weights_of({**config_of("llama"), field: value})
