"""State of torch, bitsandbytes, torchao and flashoptim: read as what it is, whatever its class or version."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from oracle import assert_same_params, random_params, train, twins
from pagedopt import AdamW, CheckpointError, PagedAdamW8bit, PagedAdamW32bit
from pagedopt.codecs.codebook import sorted_values
from pagedopt.formats.bitsandbytes import WRAPPER
from pagedopt.formats.recognise import recognise, shape_of

SHAPES = [(64, 80), (300, 70), (5000,), (10,), (3, 3, 2)]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bnb = pytest.importorskip("bitsandbytes", reason="its state is read and written")
    torchao = pytest.importorskip("torchao.optim", reason="its state is read")


def moments(entry: dict[str, Any], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    read = recognise(entry, shape).open().moments(0, math.prod(shape))
    return read.exp_avg.view(shape), read.exp_avg_sq.view(shape)


def farthest(ours: list[Any], theirs: list[Any]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True) if a.numel())


# -- torch


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_torchs_state_goes_on_here(cls: Any, amsgrad: bool) -> None:
    params = random_params(SHAPES)
    theirs = cls(params, lr=1e-2, weight_decay=0, amsgrad=amsgrad)
    train(theirs, params, 5)
    (copies,) = twins(params, 1)
    ours = AdamW(copies)
    ours.load_state_dict(theirs.state_dict())
    train(theirs, params, range(5, 10))
    train(ours, copies, range(5, 10))
    assert farthest(params, copies) <= 1e-6, "the float32 rounding of two orders of the same sums, over five steps"


def test_adams_coupled_decay_is_not_taken_over_in_silence() -> None:
    params = random_params([(10,)])
    theirs = torch.optim.Adam(params, weight_decay=0.1)
    train(theirs, params, 1)
    state = theirs.state_dict()
    state["param_groups"][0]["decoupled_weight_decay"] = False
    with pytest.warns(UserWarning, match="decoupled"):
        AdamW(random_params([(10,)])).load_state_dict(state)


def test_half_precision_moments_of_any_strides_are_read_as_values() -> None:
    shape = (8, 4, 3, 3)
    m = torch.randn(shape).to(memory_format=torch.channels_last).bfloat16()
    v = torch.rand(shape).to(memory_format=torch.channels_last).bfloat16()
    read = moments({"step": torch.tensor(3.0), "exp_avg": m, "exp_avg_sq": v}, shape)
    assert torch.equal(read[0], m.float())
    assert torch.equal(read[1], v.float())


# -- bitsandbytes


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours", "tolerance"),
    [
        (bnb.optim.AdamW, PagedAdamW32bit, 1e-6),
        (bnb.optim.AdamW8bit, PagedAdamW8bit, 1e-2),
    ],
    ids=["32", "8"],
)
def test_bitsandbytes_state_goes_on_here(theirs: Any, ours: Any, tolerance: float, wrapped: bool) -> None:
    """lr is 1e-2: in 8 bits no value is off by more than one step's length after five, in 32 by rounding only."""
    params = random_params(SHAPES)
    before = theirs(params, lr=1e-2)
    train(before, params, 5)
    saved = before.state_dict()
    if not wrapped:
        saved["state"] = {k: {"step": v["step"], **v[WRAPPER]} for k, v in saved["state"].items()}
    (copies,) = twins(params, 1)
    after = ours(copies)
    after.load_state_dict(saved)
    train(before, params, range(5, 10))
    train(after, copies, range(5, 10))
    assert farthest(params, copies) <= tolerance


def bnb_8bit(shape: tuple[int, ...], block: int | None) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return an entry with blocks of that size, or tensor-wise, and the moments that it means."""
    numel = math.prod(shape)
    size = block or numel
    entry: dict[str, Any] = {"step": 7}
    values = []
    for moment, signed in (("1", True), ("2", False)):
        codes = torch.randint(0, 256, shape, dtype=torch.uint8)
        book, scales = sorted_values(signed=signed), torch.rand(-(-numel // size)) + 0.1
        entry |= {f"state{moment}": codes, f"qmap{moment}": book}
        entry |= {f"absmax{moment}": scales} if block else {f"max{moment}": scales, f"new_max{moment}": scales * 2}
        spread = scales.repeat_interleave(size)[:numel].view(shape)
        values.append(book[codes.int()] * spread)
    return entry, *values


@pytest.mark.parametrize("block", [64, 256, 2048, 4096, None], ids=str)
@pytest.mark.parametrize("shape", [(64, 80), (5000,), (33, 257)], ids=str)
def test_8_bit_state_of_any_version_reads_with_its_own_blocks(shape: tuple[int, ...], block: int | None) -> None:
    entry, m, v = bnb_8bit(shape, block)
    read = recognise(entry, shape)
    assert (read.step, read.is_8bit) == (7, True)
    assert torch.equal(moments(entry, shape)[0], m)
    assert torch.equal(moments(entry, shape)[1], v)


def test_a_checkpoints_own_codebook_is_what_decodes_it() -> None:
    entry, m, _ = bnb_8bit((64, 80), 256)
    entry["qmap1"] = entry["qmap1"] * 2
    assert torch.equal(moments(entry, (64, 80))[0], m * 2)


def test_clipping_history_is_read_under_their_name() -> None:
    entry, _, _ = bnb_8bit((64, 80), 256)
    norms = torch.rand(100)
    read = recognise({**entry, "gnorm_vec": norms}, (64, 80))
    assert read.gnorms is not None
    assert torch.equal(read.gnorms, norms)
    assert read.gnorms.data_ptr() != norms.data_ptr()


# -- torchao


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_torchaos_quantized_tensors_are_read_as_the_values_they_stand_for(name: str) -> None:
    params = random_params([(64, 80), (10,)])
    theirs = getattr(torchao, name)(params, lr=1e-2)
    train(theirs, params, 2)
    saved = theirs.state_dict()
    read = moments(saved["state"][0], (64, 80))
    assert torch.equal(read[0], saved["state"][0]["exp_avg"].dequantize().float())
    assert torch.equal(read[1], saved["state"][0]["exp_avg_sq"].dequantize().float())
    assert recognise(saved["state"][0], (64, 80)).is_8bit
    (copies,) = twins(params, 1)
    ours = PagedAdamW8bit(copies)
    ours.load_state_dict(saved)
    assert ours.state[copies[0]]["step"].item() == 2
    assert float(ours.param_groups[0]["lr"]) == pytest.approx(1e-2)
    train(ours, copies, range(2, 3))


# -- flashoptim


def flash_entry(shape: tuple[int, ...], *, as_bfloat16: bool = False) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return a compressed entry, and the moments that its definition gives."""
    numel = math.prod(shape)
    group = torch.arange(numel) // 32
    q1 = torch.randint(-127, 128, (numel,), dtype=torch.int8)
    q2 = torch.randint(0, 256, (numel,), dtype=torch.uint8)
    s1, s2 = (torch.rand(-(-numel // 32)).half() for _ in range(2))
    y = q1.float() / 127
    m = s1.float()[group] * (y / (2 - y.abs()))
    v = (s2.float()[group] * (q2.float() / 255)) ** 2
    s1, s2 = (s.view(torch.bfloat16) if as_bfloat16 else s for s in (s1, s2))
    entry = {
        "step": torch.tensor(4),
        "exp_avg::quantized": q1.view(shape),
        "exp_avg::scales": s1,
        "exp_avg_sq::quantized": q2.view(shape),
        "exp_avg_sq::scales": s2,
    }
    return entry, m.view(shape), v.view(shape)


@pytest.mark.parametrize("as_bfloat16", [False, True])
@pytest.mark.parametrize("shape", [(64, 80), (33,)], ids=str)
def test_flashoptims_groups_are_read(shape: tuple[int, ...], as_bfloat16: bool) -> None:
    entry, m, v = flash_entry(shape, as_bfloat16=as_bfloat16)
    read = moments(entry, shape)
    assert torch.equal(read[0], m)
    assert torch.equal(read[1], v)
    assert recognise(entry, shape).is_8bit


def test_the_hidden_bits_of_flashoptims_parameters_are_left_out_aloud() -> None:
    (param,) = random_params([(64, 80)], dtype=torch.bfloat16)
    entry, _, _ = flash_entry((64, 80))
    entry["error_bits"] = torch.zeros(64, 80, dtype=torch.int8)
    group = {"params": [0], "lr": 1e-3, "master_bytewidth": 3}
    with pytest.warns(UserWarning, match="error_bits of 1 parameter.*left out"):
        PagedAdamW8bit([param]).load_state_dict({"state": {0: entry}, "param_groups": [group]})


# -- refusals


def entries() -> dict[str, dict[str, Any]]:
    plain = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(64, 80), "exp_avg_sq": torch.zeros(64, 80)}
    bits, _, _ = bnb_8bit((64, 80), 256)
    flash, _, _ = flash_entry((64, 80))
    ours = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.zeros(64, 80, dtype=torch.int8),
        "exp_avg_sq": torch.zeros(64, 80, dtype=torch.uint8),
        "exp_avg_absmax": torch.zeros(64, 1),
        "exp_avg_sq_absmax": torch.zeros(64, 1),
    }
    wrapped = {"step": 1, WRAPPER: {key: value for key, value in bits.items() if key != "step"}}
    return {"torch": plain, "bitsandbytes": bits, "wrapped": wrapped, "flashoptim": flash, "ours": ours}


def damages() -> list[tuple[str, str, Any]]:
    """Every key of every entry, missing, misshapen, cut short, of another type, and a foreign key beside them."""
    found: list[tuple[str, str, Any]] = []
    for name, entry in entries().items():
        inner = entry.get(WRAPPER, entry)
        for key, value in inner.items():
            found.append((name, key, None))
            if isinstance(value, Tensor) and value.dim():
                found += [(name, key, value[:-1]), (name, key, value.to(torch.int32)), (name, key, [1, 2])]
                found += [(name, key, value.t())] if value.dim() == 2 and value.numel() > 64 else []
        found.append((name, "momentum_buffer", torch.zeros(64, 80)))
        found.append((name, "step", math.nan))
    return found


@pytest.mark.parametrize(
    ("name", "key", "value"), damages(), ids=lambda x: x if isinstance(x, str) else type(x).__name__
)
def test_an_entry_that_is_not_whole_is_refused_by_name_and_nothing_changes(name: str, key: str, value: Any) -> None:
    entry = dict(entries()[name])
    inner = entry[WRAPPER] = dict(entry[WRAPPER]) if WRAPPER in entry and key != "step" else entry
    if inner is entry:
        del entry[WRAPPER]
        if name == "wrapped":
            entry[WRAPPER] = entries()[name][WRAPPER]
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    params = random_params([(3,), (64, 80)])
    optimizer = PagedAdamW8bit([("bias", params[0]), ("weight", params[1])])
    train(optimizer, params, 1)
    groups, state = optimizer.param_groups[0].copy(), optimizer.state_dict()
    good = {"step": 1.0, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="'weight' cannot be loaded"):
        optimizer.load_state_dict({"state": {0: good, 1: entry}, "param_groups": [{"params": [0, 1], "lr": 5.0}]})
    assert optimizer.param_groups[0] == groups
    after = optimizer.state_dict()
    for number, before in state["state"].items():
        assert all(torch.equal(tensor, after["state"][number][key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", list(entries()))
def test_the_shape_of_a_parameter_is_told_by_its_entry(name: str) -> None:
    assert shape_of(entries()[name]) == (64, 80)


@pytest.mark.parametrize("entry", [None, [], {}, {"step": 1}, {"momentum_buffer": torch.zeros(3)}], ids=str)
def test_what_is_no_adamws_state_is_refused(entry: Any) -> None:
    with pytest.raises(CheckpointError):
        recognise(entry, (3,))
    with pytest.raises(CheckpointError):
        shape_of(entry)


def test_reading_state_changes_none_of_it() -> None:
    for name, entry in entries().items():
        copy = {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}
        moments(entry, (64, 80))
        for key, value in copy.items():
            assert not isinstance(value, Tensor) or torch.equal(value, entry[key]), (name, key)


def test_state_of_a_whole_model_moves_between_all_of_them() -> None:
    """torch -> ours -> bitsandbytes -> ours: in 32 bits nothing is lost on the way."""
    params = random_params(SHAPES)
    theirs = torch.optim.AdamW(params, lr=1e-2)
    train(theirs, params, 3)
    first, second = (AdamW(copies) for copies in twins(params))
    first.load_state_dict(theirs.state_dict())
    import pagedopt

    second.load_state_dict(pagedopt.export_state(first, "bitsandbytes", wrapped=True))
    for param, other in zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(first.state[param][key], second.state[other][key])
    assert_same_params(first.param_groups[0]["params"], second.param_groups[0]["params"])
