"""What trains is read from whatever says so, and from nothing else: no tensor is made, no data is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pagedopt.costs.sizes import weights_of
from pagedopt.costs.weights import SizesError, Weight, lora
from pagedopt.integrations.groups import parameter_groups
from pagedopt.optim.overrides import GlobalOptimManager

CONFIG = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "torch_dtype": "bfloat16",
}


def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 12), nn.LayerNorm(12))


def facts(weights: tuple[Weight, ...]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(weight.name, weight.shape, weight.dtype) for weight in weights]


def test_a_models_parameters_that_train_are_counted_wherever_they_are() -> None:
    for device in ("cpu", "meta"):
        with torch.device(device):
            trained = model().to(torch.bfloat16)
        trained[0].requires_grad_(False)

        assert facts(weights_of(trained)) == [
            (name, tuple(param.shape), torch.bfloat16)
            for name, param in trained.named_parameters()
            if not name.startswith("0.")
        ]


def test_groups_keep_their_options_and_overrides_win() -> None:
    trained = model()
    GlobalOptimManager.get_instance().register_module_override(trained[2], "weight", {"min_8bit_size": 0, "lr": 1.0})

    by_shape = {weight.shape: dict(weight.options) for weight in weights_of(parameter_groups(trained))}
    by_name = {weight.name: dict(weight.options) for weight in weights_of(trained)}

    assert (by_shape[12, 8], by_shape[10, 8]) == ({}, {"optim_bits": 32})
    assert (by_name["2.weight"], by_name["2.bias"]) == ({"min_8bit_size": 0}, {})


def test_named_parameters_and_plain_ones_are_the_same_sizes() -> None:
    trained = model()

    named, plain = weights_of(list(trained.named_parameters())), weights_of(trained.parameters())

    assert [weight.shape for weight in named] == [weight.shape for weight in plain]
    assert [weight.name for weight in named] == [name for name, _ in trained.named_parameters()]


def test_an_optimizer_has_the_sizes_of_its_groups() -> None:
    groups = parameter_groups(model())

    assert weights_of(torch.optim.AdamW(groups)) == weights_of(groups)


@pytest.mark.parametrize("count", [7_000_000_000, 7e9, "7B", "7e9", "7,000,000,000"])
def test_a_number_is_one_vector(count: float | str) -> None:
    assert facts(weights_of(count, torch.float16)) == [("params", (7_000_000_000,), torch.float16)]


def test_a_safetensors_file_an_index_and_their_folder_say_the_same(tmp_path: Path) -> None:
    tensors = {
        name: torch.zeros(3, 5, dtype=dtype) for name, dtype in (("a.weight", torch.bfloat16), ("b", torch.float32))
    }
    save_file({**tensors, "quantized": torch.zeros(9, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name, tensor in tensors.items():
        save_file({name: tensor}, sharded / f"model-{name}.safetensors")
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in tensors}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = {("a.weight", (3, 5), torch.bfloat16), ("b", (3, 5), torch.float32)}

    for source in (tmp_path, tmp_path / "model.safetensors", sharded, str(sharded / "model.safetensors.index.json")):
        assert set(facts(weights_of(source))) == expected


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"


@pytest.mark.parametrize(
    "shards", [{}, {"a.safetensors": POINTER}, {"a.safetensors": POINTER, "b.safetensors": POINTER}]
)
def test_a_clone_without_its_large_files_is_planned_by_its_config(shards: dict[str, str], tmp_path: Path) -> None:
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in shards.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SizesError, match=r"is not beside it|pointer of git-lfs.*give the config.json"):
        weights_of(tmp_path)

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert weights_of(tmp_path) == weights_of(CONFIG)


def test_only_headers_are_read(tmp_path: Path) -> None:
    """A file whose data is missing says as much as a whole one."""
    path = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.zeros(300, 500)}, path)
    path.write_bytes(path.read_bytes()[:200])

    assert facts(weights_of(path)) == [("a.weight", (300, 500), torch.float32)]


def test_a_config_is_read_from_a_file_a_folder_or_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    in_all_ways = [weights_of(source) for source in (tmp_path, tmp_path / "config.json", CONFIG)]

    assert in_all_ways[0] == in_all_ways[1] == in_all_ways[2]
    assert {weight.dtype for weight in in_all_ways[0]} == {torch.bfloat16}


def test_lora_needs_layers_and_knows_their_names() -> None:
    with pytest.raises(SizesError, match="no linear layer is known here"):
        lora(weights_of("7B"), 8)
    with pytest.raises(
        SizesError, match="names no linear layer 'qkv'; there are down_proj, gate_proj, k_proj, lm_head"
    ):
        lora(weights_of(CONFIG), 8, ["q_proj", "qkv"])
    assert lora(weights_of(CONFIG), 8, ["lm_head"])[1].shape == (97, 8)


def wrong_files(folder: Path) -> dict[str, str]:
    (folder / "empty").mkdir()
    (folder / "no.json").write_text("{")
    (folder / "list.json").write_text("[]")
    (folder / "text.txt").write_text("7B")
    (folder / "short.safetensors").write_bytes(b"abc")
    (folder / "long.safetensors").write_bytes((1 << 40).to_bytes(8, "little"))
    (folder / "no.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    (folder / "bare.safetensors").write_bytes((9).to_bytes(8, "little") + b'{"a": {}}')
    (folder / "index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    (folder / "bad.index.json").write_text('{"weight_map": 7}')
    return {
        "empty": "has no model.safetensors.index.json, model.safetensors or config.json",
        "no.json": "is no JSON",
        "list.json": "is no JSON object",
        "text.txt": "is neither a config.json nor a safetensors file",
        "short.safetensors": "it ends in its header",
        "long.safetensors": "header would be",
        "no.safetensors": "its header is no JSON object",
        "bare.safetensors": "'a' has no dtype and shape",
        "index.json": "gone.safetensors is not beside it",
        "bad.index.json": "it has no 'weight_map'",
        "missing": "there is no file or folder",
    }


def test_what_cannot_be_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    for name, message in wrong_files(tmp_path).items():
        with pytest.raises(SizesError, match=message):
            weights_of(tmp_path / name)


@pytest.mark.parametrize("source", [True, None, 3.5, float("nan"), float("inf"), [3]])
def test_what_is_no_source_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError):
        weights_of(source)


def test_a_model_in_which_nothing_trains_is_an_error() -> None:
    with pytest.raises(SizesError, match="nothing trains"):
        weights_of(model().requires_grad_(False))
