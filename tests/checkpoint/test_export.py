"""The real torch and the real bitsandbytes step on from what we export, and we from what they make of it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import pagedopt
from oracle import random_params, train, twins
from pagedopt import AdamW, CheckpointError, GlobalOptimManager, PagedAdamW8bit, PagedAdamW32bit
from pagedopt.formats.bitsandbytes import WRAPPER
from pagedopt.formats.recognise import recognise
from residue import smallest_budget
from states import SHAPES, contents, differences, optimizer_of, params_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bnb = pytest.importorskip("bitsandbytes", reason="its optimizers step on from what is exported")

LR = 1e-2
ROUNDING = 1e-6
"""Parameters of size 1 after ten float32 updates whose sums are in another order."""
CODES = 0.5 * LR
"""8-bit state: after five steps none is off by more than half a step's length. bitsandbytes' CPU build encodes through
a coarse table, and keeps v where we keep its root."""


def farthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True) if a.numel())


def typical(ours: list[Tensor], theirs: list[Tensor]) -> float:
    off = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)])
    return off.square().mean().sqrt().item()


@pytest.mark.parametrize("kind", ["32", "32-amsgrad", "32-maximize", "8", "8-tensor-wise"])
def test_torchs_adamw_goes_on_from_our_export(kind: str) -> None:
    ours = optimizer_of(kind, steps=5)
    (copies,) = twins(params_of(ours), 1)
    theirs = torch.optim.AdamW(copies)
    theirs.load_state_dict(pagedopt.export_state(ours, "torch"))
    assert theirs.param_groups[0]["lr"] == LR
    train(ours, params_of(ours), range(5, 10))
    train(theirs, copies, range(5, 10))
    if kind.startswith("32"):
        assert farthest(params_of(ours), copies) <= ROUNDING
    else:
        assert typical(params_of(ours), copies) <= CODES

    (again,) = twins(copies, 1)
    back = AdamW(again)
    back.load_state_dict(theirs.state_dict())
    train(theirs, copies, range(10, 15))
    train(back, again, range(10, 15))
    assert farthest(copies, again) <= ROUNDING


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("ours_cls", "theirs_cls"),
    [
        (PagedAdamW32bit, bnb.optim.AdamW),
        (PagedAdamW8bit, bnb.optim.AdamW8bit),
        (PagedAdamW8bit, bnb.optim.PagedAdamW8bit),
    ],
    ids=["32", "8", "paged-8"],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_bitsandbytes_goes_on_from_our_export_and_we_from_theirs(ours_cls: Any, theirs_cls: Any, wrapped: bool) -> None:
    is_8bit = ours_cls is PagedAdamW8bit
    params = random_params([shape for shape in SHAPES if math.prod(shape)])  # theirs divides by zero on an empty one
    ours = ours_cls(params, lr=LR, page_size="64KiB")
    train(ours, params, 5)
    (copies,) = twins(params, 1)
    theirs = theirs_cls(copies, lr=123)
    theirs.load_state_dict(pagedopt.export_state(ours, "bitsandbytes", wrapped=wrapped))
    train(ours, params, range(5, 10))
    train(theirs, copies, range(5, 10))
    for number, entry in enumerate(theirs.state.values()):
        assert entry["state1"].dtype == (torch.uint8 if is_8bit and params[number].numel() >= 4096 else torch.float32)
    if is_8bit:
        assert typical(params, copies) <= CODES / 4
        assert farthest(params, copies) <= CODES
    else:
        assert farthest(params, copies) <= ROUNDING

    (again,) = twins(copies, 1)
    back = ours_cls(again)
    back.load_state_dict(theirs.state_dict())
    train(theirs, copies, range(10, 15))
    train(back, again, range(10, 15))
    assert farthest(copies, again) <= (CODES if is_8bit else ROUNDING)


@pytest.mark.parametrize("kind", ["8", "8-all", "8-tensor-wise"])
def test_8_bit_export_is_flat_blocks_of_256_with_their_codebooks(kind: str) -> None:
    exported = pagedopt.export_state(optimizer_of(kind), "bitsandbytes")
    for number, shape in enumerate(SHAPES):
        entry, numel = exported["state"][number], math.prod(shape)
        if entry["state1"].dtype == torch.float32:
            assert numel < 4096
            continue
        assert isinstance(entry["step"], int)
        assert entry["absmax1"].shape == entry["absmax2"].shape == (-(-numel // 256),)
        assert entry["state1"].shape == entry["state2"].shape == shape
        for moment, signed in (("1", True), ("2", False)):
            theirs = bnb.functional.create_dynamic_map(signed=signed)
            assert torch.allclose(entry[f"qmap{moment}"], theirs, rtol=2e-7, atol=0), "to float32 rounding"


@pytest.mark.parametrize(("shape", "is_same"), [((64, 512), True), ((70_001,), True), ((300, 257), False)])
def test_first_moments_are_exact_where_the_blocks_are_the_same(shape: tuple[int, ...], is_same: bool) -> None:
    ours = optimizer_of("8", [shape], steps=3)
    entry = pagedopt.export_state(ours, "bitsandbytes")["state"][0]
    numel = math.prod(shape)
    kept = recognise(ours.state_dict()["state"][0], shape).open().moments(0, numel)
    exported = recognise(entry, shape).open().moments(0, numel)
    assert torch.equal(kept.exp_avg, exported.exp_avg) is is_same
    scale = entry["absmax2"].repeat_interleave(256)[:numel]
    assert ((kept.exp_avg_sq - exported.exp_avg_sq).abs() <= 0.0072 * scale).all(), "half of the codebook's widest step"
    assert (exported.exp_avg_sq[kept.exp_avg_sq > 0] > 0).all(), (
        "a zero beside a first moment would be an endless update"
    )


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("kind", ["8", "32"])
def test_bits_are_those_of_the_class_that_will_read(kind: str, bits: int) -> None:
    exported = pagedopt.export_state(optimizer_of(kind), "bitsandbytes", optim_bits=bits, min_8bit_size=100)
    for number, shape in enumerate(SHAPES):
        is_8bit = bits == 8 and math.prod(shape) >= 100
        assert exported["state"][number]["state1"].dtype == (torch.uint8 if is_8bit else torch.float32)


def test_clipping_history_goes_there_and_back() -> None:
    ours = optimizer_of("8-clipped")
    exported = pagedopt.export_state(ours, "bitsandbytes")
    loaded = optimizer_of("8-clipped", steps=0)
    loaded.load_state_dict(exported)
    for number, param in enumerate(params_of(ours)):
        norms = ours.state[param]["gnorm_history"]
        assert torch.equal(exported["state"][number]["gnorm_vec"], norms)
        assert torch.equal(loaded.state[params_of(loaded)[number]]["gnorm_history"], norms)


@pytest.mark.parametrize("format", ["torch", "bitsandbytes"])
def test_an_export_is_a_plain_snapshot_and_changes_nothing(
    format: Any,  # noqa: A002 - the argument's own name
    tmp_path: Any,
) -> None:
    ours = optimizer_of("8", max_host_memory=smallest_budget("64KiB", 2), spill_dir=tmp_path)
    before = contents(ours)
    exported = pagedopt.export_state(ours, format, **({"wrapped": True} if format == "bitsandbytes" else {}))
    torch.save(exported, tmp_path / "file")
    copy = torch.load(tmp_path / "file", weights_only=True)
    train(ours, params_of(ours), range(2, 4))
    entry, other = exported["state"][0], copy["state"][0]
    key = "exp_avg" if format == "torch" else WRAPPER
    for ours_now, then in (
        ((entry[key], other[key]),) if format == "torch" else zip(entry[key].values(), other[key].values(), strict=True)
    ):
        assert torch.equal(ours_now, then)
    assert differences(contents(ours), before) != []


def test_a_tensor_lr_and_a_schedulers_keys_are_exported_as_each_library_has_them() -> None:
    (param,) = random_params([(4,)])
    ours = AdamW([{"params": [param], "initial_lr": 0.5}], lr=torch.tensor(0.25), betas=(torch.tensor(0.5), 0.75))
    train(ours, [param], 1)
    assert isinstance(pagedopt.export_state(ours, "torch")["param_groups"][0]["lr"], Tensor)
    (group,) = pagedopt.export_state(ours, "bitsandbytes")["param_groups"]
    assert group == {
        "alpha": 0.0, "t_alpha": None, "t_beta3": None, "lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-8,
        "weight_decay": 1e-2, "initial_lr": 0.5, "params": [0],
    }  # fmt: skip


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_what_bitsandbytes_has_not_is_refused(option: str) -> None:
    with pytest.raises(CheckpointError, match=f"{option}=True, which bitsandbytes has not"):
        pagedopt.export_state(optimizer_of(f"32-{option}"), "bitsandbytes")


def test_hyperparameters_of_one_parameter_are_said_to_stay_behind() -> None:
    ours = optimizer_of("8")
    GlobalOptimManager.get_instance().override_config(params_of(ours)[0], "lr", 0.1)
    with pytest.warns(UserWarning, match=r"1 parameter\(s\) have hyperparameters of their own"):
        pagedopt.export_state(ours, "torch")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"format": "flax"}, "format must be 'torch' or 'bitsandbytes', got 'flax'"),
        ({"format": "bitsandbytes", "optim_bits": 4}, "optim_bits must be 8, 32 or None, got 4"),
        ({"format": "torch", "optim_bits": 8}, "torch's state is 32-bit"),
        ({"format": "torch", "wrapped": True}, "torch's state is 32-bit"),
    ],
)
def test_a_wrong_argument_of_an_export_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pagedopt.export_state(optimizer_of("8", [(4,)]), **arguments)
