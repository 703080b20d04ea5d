"""A config.json means the very parameters that transformers makes of it, known here or not."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pagedopt.costs.families import FAMILIES, is_known, weights_of_config
from pagedopt.costs.sizes import weights_of
from pagedopt.costs.weights import SizesError, Weight, lora

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 33}
QWEN_MOE = {"num_experts": 4, "moe_intermediate_size": 40, "mlp_only_layers": [0], "decoder_sparse_step": 1}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 6,
    "n_group": 2,
    "topk_group": 1,
}
MORE: dict[str, dict[str, Any]] = {
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
    "qwen2_moe": {**QWEN_MOE, "shared_expert_intermediate_size": 56},
    "qwen3_moe": QWEN_MOE,
}
"""What the families with experts have beside `SMALL`."""

CONFIGS = Path(__file__).parent / "configs"

PUBLISHED = {
    "DeepSeek-V2-Lite": 15_706_484_224,
    "DeepSeek-V3": 671_026_404_352,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-11B-Vision-Instruct": 10_670_220_835,
    "Llama-4-Scout-17B-16E": 108_641_793_536,
    "Mixtral-8x7B": 46_702_792_704,
    "OLMoE-1B-7B": 6_919_161_856,
    "Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen2-VL-7B": 8_291_375_616,
    "Qwen3-30B-A3B": 30_532_122_624,
    "bert-base": 109_514_298,
    "gemma-3-4b": 4_300_079_472,
    "llava-1.5-7b-hf": 7_063_427_072,
}
"""Values in the models of `CONFIGS`, which have the fields of the published files that say something of shapes."""

OF_TRANSFORMERS = ("Llama-3.2", "Llama-4", "Qwen2-VL", "bert", "gemma-3", "llava")
"""Those whose family is not known here."""


def config_of(family: str) -> dict[str, Any]:
    if family == "gpt2":
        return {"model_type": family, **GPT2}
    small = {key: value for key, value in SMALL.items() if key != "head_dim" or family not in MORE}
    return {"model_type": family, **small, **MORE.get(family, {})}


def model_of(config: dict[str, Any]) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    fields = copy.deepcopy(config)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(fields.pop("model_type"), **fields), dtype=torch.float32
        )


def facts(weights: tuple[Weight, ...]) -> list[tuple[str, tuple[int, ...], tuple[int, int] | None]]:
    return [(weight.name, weight.shape, weight.linear) for weight in weights]


def same_as_transformers(config: dict[str, Any]) -> bool:
    ours, theirs = facts(weights_of_config(config, "x")), facts(weights_of(model_of(config)))
    if config["model_type"] == "gpt2":  # its layers are of a class of their own
        return [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    return ours == theirs


@pytest.mark.parametrize("is_tied", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_means_the_parameters_that_transformers_makes(family: str, is_tied: bool | None) -> None:
    config = config_of(family) if is_tied is None else {**config_of(family), "tie_word_embeddings": is_tied}

    assert same_as_transformers(config)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("qwen2_moe", {"qkv_bias": False}),
        ("qwen2_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
        ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [1]}),
        ("mixtral", {"head_dim": 4}),
        ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True}),
        ("deepseek_v2", {"mlp_bias": True}),
        ("deepseek_v3", {"attention_bias": True, "n_shared_experts": 1, "first_k_dense_replace": 0}),
    ],
)
def test_what_the_config_says_otherwise_is_followed(family: str, fields: dict[str, Any]) -> None:
    assert same_as_transformers({**config_of(family), **fields})


def config_in(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def test_every_published_config_has_its_count() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_as_many_values_as_its_model_has(name: str) -> None:
    if name.startswith(OF_TRANSFORMERS):
        pytest.importorskip("transformers")
    weights = weights_of(CONFIGS / f"{name}.json")

    assert sum(weight.numel for weight in weights) == PUBLISHED[name]
    assert is_known(config_in(name)) is not name.startswith(OF_TRANSFORMERS)
    expected = {"bert-base": torch.float32, "llava-1.5-7b-hf": torch.float16}.get(name, torch.bfloat16)
    assert {weight.dtype for weight in weights} == {expected}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith(OF_TRANSFORMERS)])
def test_what_is_known_here_is_what_transformers_makes(name: str) -> None:
    fields = {key: value for key, value in config_in(name).items() if key not in ("quantization_config", "auto_map")}

    assert same_as_transformers(fields)


def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)


def test_without_transformers_what_it_would_know_is_an_error_that_says_what_would_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_transformers(monkeypatch)
    with pytest.raises(
        SizesError,
        match=r"LlavaForConditionalGeneration of the family 'llava'.*pip install it.*safetensors file.*--params",
    ):
        weights_of(CONFIGS / "llava-1.5-7b-hf.json")
    assert weights_of(CONFIGS / "Mixtral-8x7B.json")


def test_transformers_that_cannot_be_imported_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text("raise RuntimeError('numpy is of another day')")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SizesError, match=r"which cannot be imported: numpy is of another day; give a safetensors"):
        weights_of(CONFIGS / "llava-1.5-7b-hf.json")


@pytest.mark.parametrize("classes", [None, 7, "LlamaForCausalLM", [7], {}, []])
def test_a_list_of_classes_that_is_none_is_not_asked(classes: Any) -> None:
    assert weights_of({**config_of("llama"), "architectures": classes}) == weights_of(config_of("llama"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "no_such_family"},
            r"does not know the family 'no_such_family' of the config; .*safetensors.*--params",
        ),
        ({"model_type": "bert", "hidden_size": "many"}, r"makes no model of the config: .*--params"),
        ({"hidden_size": 3}, r"has no 'model_type'"),
        ({"model_type": 7}, r"has no 'model_type'"),
    ],
)
def test_a_config_that_nobody_knows_is_an_error_that_says_what_would_help(config: dict[str, Any], said: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(SizesError, match=said) as refused:
        weights_of(config)

    assert len(str(refused.value)) < 600


def test_transformers_is_asked_for_the_class_that_the_config_names() -> None:
    pytest.importorskip("transformers")
    classifier = {**config_of("llama"), "architectures": ["LlamaForSequenceClassification"], "num_labels": 5}
    names = {weight.name: weight.shape for weight in weights_of(classifier)}

    assert names["score.weight"] == (5, 48)
    assert "lm_head.weight" not in names


def test_no_code_that_comes_with_a_model_is_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "configuration_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {**config_in("bert-base"), "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert weights_of(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_transformers_says_nothing_and_talks_as_before_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    before = transformers.logging.get_verbosity()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights_of({**config_in("bert-base"), "eos_token_id": 10**9})

    assert capfd.readouterr().err == ""
    assert transformers.logging.get_verbosity() == before


@pytest.mark.parametrize("name", ["Llama-3.2-11B-Vision-Instruct", "gemma-3-4b"])
def test_a_model_that_transformers_makes_takes_no_memory(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from pagedopt.costs.meta_model import model_of_config

    model = model_of_config(config_in(name), "x")

    assert isinstance(model, transformers.PreTrainedModel)
    assert {param.device.type for param in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["all-linear"]),
        ("qwen2", ["q_proj", "v_proj"]),
        ("gpt2", ["c_attn"]),
        ("qwen2_moe", ["all-linear"]),
    ],
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


@pytest.mark.parametrize(("field", "value"), [("hidden_size", None), ("vocab_size", "many"), ("num_hidden_layers", 0)])
def test_a_field_that_makes_no_sense_is_named(field: str, value: object) -> None:
    with pytest.raises(SizesError, match=field):
        weights_of({**config_of("llama"), field: value})
