"""`pagedopt inspect` and `pagedopt convert`: what they say, what they make, and how they exit."""

from __future__ import annotations

import json
import random
import tracemalloc
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

import mutations
import pagedopt
from mutations import MANIFEST
from oracle import random_params, train, twins
from pagedopt import AdamW, CheckpointError, PagedAdamW
from pagedopt.checkpoint.archive import open_archive
from pagedopt.checkpoint.convert import convert
from pagedopt.checkpoint.inspection import inspect
from pagedopt.cli import main
from pagedopt.codecs.codebook import sorted_values
from pagedopt.formats.bitsandbytes import WRAPPER
from states import SHAPES, TINY, contents, differences, files_in, optimizer_of, params_of
from strategies import STATE_KINDS


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit code, output and errors of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pagedopt.save(optimizer_of("8-clipped"), tmp_path / "checkpoint", max_file_size=100_000)
    return tmp_path / "checkpoint"


def like(kind: str) -> PagedAdamW:
    params = random_params(SHAPES)
    return PagedAdamW(params, page_size="64KiB", **STATE_KINDS[kind])


# inspect


def test_inspect_says_what_is_in_a_checkpoint(saved: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "inspect", saved)
    assert code == 0
    for said in ("pagedopt checkpoint", "dynamic8/1", "blockwise8", "float32", "lr=0.01", "whole: every checksum"):
        assert said in out
    assert str(len(SHAPES)) in out


def test_inspect_as_json_is_for_programs(saved: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "inspect", saved, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["kind"] == "pagedopt checkpoint"
    assert found["params"] == len(SHAPES)
    assert found["steps"] == [2, 2]
    assert found["damage"] == []
    assert found["is_verified"] is True
    assert sum(way["values"] for way in found["kept"]) == sum(torch.Size(shape).numel() for shape in SHAPES)
    assert sum(found["files"].values()) == sum(path.stat().st_size for path in saved.iterdir())


def test_inspect_names_every_damaged_tensor_and_exits_with_1(
    saved: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # narrower than any path
    for path in saved.glob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    count = len(list(saved.glob("*.safetensors")))
    code, out, _ = run(capsys, "inspect", saved)
    assert code == 1
    assert out.count("DAMAGED: ") == count > 1
    assert out.count("its checksum differs") == count
    code, out, _ = run(capsys, "inspect", saved, "--quick")
    assert code == 0
    assert "checksums were not compared" in out
    next(saved.glob("*.safetensors")).unlink()
    code, out, _ = run(capsys, "inspect", saved, "--json", "--quick")
    assert code == 1
    assert "is missing" in json.loads(out)["damage"][0]


@pytest.mark.parametrize(
    "what", ["nothing", "empty folder", "garbage manifest", "no torch file", "pickle that runs code"]
)
def test_inspect_of_no_checkpoint_is_an_error_and_runs_nothing(what: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "x"
    if what == "empty folder":
        path.mkdir()
    elif what == "garbage manifest":
        path.mkdir()
        (path / MANIFEST).write_bytes(b"\x00garbage")
    elif what == "no torch file":
        path.write_bytes(b"garbage")
    elif what == "pickle that runs code":
        torch.save({"state": _Evil(), "param_groups": []}, path)
    code, out, err = run(capsys, "inspect", path)
    assert code == 1
    assert err.startswith("error: ")
    assert str(path) in err
    assert err.count("\n") == 1
    assert not out
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/pagedopt-evil-ran"),)


def test_inspect_tells_whose_state_is_in_a_file_of_torchs(tmp_path: Path, capsys: Any) -> None:
    params = random_params([(64, 80)])
    theirs = torch.optim.AdamW(params)
    train(theirs, params, 3)
    torch.save(theirs.state_dict(), tmp_path / "optimizer.pt")
    code, out, _ = run(capsys, "inspect", tmp_path / "optimizer.pt")
    assert code == 0
    assert "state dict of torch.save" in out
    assert "32-bit" in out
    assert inspect(tmp_path / "optimizer.pt").steps == (3, 3)


# convert


@pytest.mark.parametrize("kind", ["8-clipped", "32-amsgrad", "8-tensor-wise"])
def test_to_torch_is_what_export_makes(kind: str, tmp_path: Path, capsys: Any) -> None:
    optimizer = optimizer_of(kind)
    pagedopt.save(optimizer, tmp_path / "in")
    code, out, _ = run(capsys, "convert", tmp_path / "in", tmp_path / "out.pt", "--to", "torch")
    assert (code, out) == (0, f"wrote the state of {len(SHAPES)} parameters to {tmp_path / 'out.pt'}\n")
    _assert_same(torch.load(tmp_path / "out.pt", weights_only=True), pagedopt.export_state(optimizer, "torch"))
    theirs = torch.optim.AdamW(twins(params_of(optimizer), 1)[0])
    theirs.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))


@pytest.mark.parametrize("options", [(), ("--wrapped",), ("--bits", "8", "--min-8bit-size", "100"), ("--bits", "32")])
def test_to_bitsandbytes_is_what_export_makes(options: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    optimizer = optimizer_of("8-clipped")
    pagedopt.save(optimizer, tmp_path / "in")
    code, _, _ = run(capsys, "convert", tmp_path / "in", tmp_path / "out.pt", "--to", "bitsandbytes", *options)
    assert code == 0
    bits = int(options[1]) if "--bits" in options else None
    expected = pagedopt.export_state(
        optimizer, "bitsandbytes", optim_bits=bits, min_8bit_size=100, wrapped="--wrapped" in options
    )
    _assert_same(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def _assert_same(
    found: dict[str, Any], expected: dict[str, Any], keys: Collection[str] = ("state", "param_groups")
) -> None:
    assert "param_groups" not in keys or found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, entry in expected["state"].items():
        ours, theirs = found["state"][number], entry
        if WRAPPER in entry:
            ours, theirs = ours[WRAPPER], theirs[WRAPPER]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), (number, key)


@pytest.mark.parametrize("kind", ["8", "32", "32-amsgrad"])
@pytest.mark.parametrize("way", ["torch", "bitsandbytes", "state dict"])
def test_a_file_of_anyones_becomes_a_checkpoint_that_loads_as_the_file_does(
    kind: str, way: str, tmp_path: Path, capsys: Any
) -> None:
    if (kind, way) == ("32-amsgrad", "bitsandbytes"):
        pytest.skip("bitsandbytes has no amsgrad")
    optimizer = optimizer_of(kind)
    state_dict = optimizer.state_dict() if way == "state dict" else pagedopt.export_state(optimizer, way)  # type: ignore[arg-type]
    torch.save(state_dict, tmp_path / "in.pt")
    code, _, err = run(capsys, "convert", tmp_path / "in.pt", tmp_path / "out", "--to", "pagedopt")
    assert (code, err) == (0, "")
    loads = "32-amsgrad" if kind == "32-amsgrad" else "32" if way == "torch" else kind
    from_checkpoint, from_file = like(loads), like(loads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pagedopt.load(from_checkpoint, tmp_path / "out")
        from_file.load_state_dict(torch.load(tmp_path / "in.pt", weights_only=True))
    assert differences(contents(from_checkpoint), contents(from_file)) == []


def torchao_codes(*, signed: bool) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = pytest.importorskip("torchao.optim.subclass_8bit", reason="its state is read")
    codes: Any = quantized.OptimState8bit.zeros((64, 80), signed=signed, block_size=256)
    codes.codes.random_(0, 256)
    codes.scale.uniform_()
    return codes


def others_state(whose: str) -> dict[str, Any]:
    """Return the state dict of another library's optimizer of one parameter of 64 x 80 values."""
    codes = {f"state{moment}": torch.randint(0, 256, (64, 80), dtype=torch.uint8) for moment in "12"}
    books = {f"qmap{moment}": sorted_values(signed=moment == "1") for moment in "12"}
    entry: dict[str, Any] = {
        "torch": {"exp_avg": torch.randn(64, 80), "exp_avg_sq": torch.rand(64, 80)},
        "blocks of 2048": {**codes, **books, "absmax1": torch.rand(3), "absmax2": torch.rand(3)},
        "tensor-wise": {**codes, **books, "max1": torch.rand(1), "max2": torch.rand(1)},
        "flashoptim": {
            "exp_avg::quantized": torch.randint(-127, 128, (64, 80), dtype=torch.int8),
            "exp_avg::scales": torch.rand(160).half(),
            "exp_avg_sq::quantized": torch.randint(0, 256, (64, 80), dtype=torch.uint8),
            "exp_avg_sq::scales": torch.rand(160).half(),
        },
        "torchao": {key: torchao_codes(signed=key == "exp_avg") for key in ("exp_avg", "exp_avg_sq")},
    }[whose]
    return {"state": {0: {"step": 3, **entry}}, "param_groups": [{"params": [0], "lr": 1e-3}]}


@pytest.mark.parametrize("to", ["pagedopt", "torch", "bitsandbytes"])
@pytest.mark.parametrize("whose", ["torch", "blocks of 2048", "tensor-wise", "flashoptim", "torchao"])
def test_state_of_every_library_converts_to_what_loading_it_gives(
    whose: str, to: str, tmp_path: Path, capsys: Any
) -> None:
    theirs = others_state(whose)
    torch.save(theirs, tmp_path / "in.pt")
    code, _, err = run(capsys, "convert", tmp_path / "in.pt", tmp_path / "out", "--to", to, "--bits", 32)
    assert (code, err) == (0, "")
    params = [torch.nn.Parameter(torch.zeros(64, 80)) for _ in range(2)]
    direct, converted = (AdamW([param]) for param in params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        direct.load_state_dict(theirs)
        if to == "pagedopt":
            pagedopt.load(converted, tmp_path / "out")
        else:
            converted.load_state_dict(torch.load(tmp_path / "out", weights_only=True))
    for key, value in direct.state[params[0]].items():
        assert torch.equal(value, converted.state[params[1]][key]), key


@pytest.mark.parametrize(
    ("state", "groups", "said"),
    [
        ([], [{"params": [0]}], "its 'state' is a list"),
        ({}, {}, "must be a list of dicts"),
        ({}, [7], "must be a list of dicts"),
        ({}, [{}], "the params of a group must be a list of numbers, got None"),
        ({}, [{"params": [[0]]}], "must be a list of numbers"),
        ({}, [{"params": [0], "lr": "fast"}], "lr must be a number, got 'fast'"),
        ({}, [{"params": [0], "betas": 0.9}], "betas must be two numbers"),
        ({1: {}}, [{"params": [0]}], "the state of 1 belongs to no parameter of its groups"),
        ({0: 7}, [{"params": [0]}], "the state of parameter 0 cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_a_state_dict_that_is_none_is_refused_with_what_is_wrong(
    command: str, state: Any, groups: Any, said: str, tmp_path: Path, capsys: Any
) -> None:
    torch.save({"state": state, "param_groups": groups}, tmp_path / "in.pt")
    target = (tmp_path / "out", "--to", "pagedopt") if command == "convert" else ()
    code, out, err = run(capsys, command, tmp_path / "in.pt", *target)
    assert (code, out) == (1, "")
    assert "in.pt: " in err
    assert said in err


# damaged files of torch's


@pytest.fixture
def torchs(tmp_path: Path) -> Path:
    """A file of torch's, whose tensors are larger than what is read at once."""
    torch.manual_seed(0)
    entry = {"step": torch.tensor(3.0), "exp_avg": torch.randn(600, 1000), "exp_avg_sq": torch.rand(600, 1000)}
    torch.save({"state": {0: entry}, "param_groups": [{"params": [0]}]}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


def flip_in(path: Path, record: str) -> str:
    """Flip a bit in the middle of a record; return the record's whole name."""
    with zipfile.ZipFile(path) as archive:
        found = next(item for item in archive.infolist() if item.filename.endswith(f"/{record}"))
    raw = bytearray(path.read_bytes())
    start = found.header_offset + 26
    names = int.from_bytes(raw[start : start + 2], "little") + int.from_bytes(raw[start + 2 : start + 4], "little")
    raw[start + 4 + names + found.file_size // 2] ^= 1
    path.write_bytes(raw)
    return found.filename


@pytest.mark.parametrize("record", ["data/1", "data/2", "data.pkl", "byteorder"])
@pytest.mark.parametrize("to", ["torch", "bitsandbytes", "pagedopt"])
def test_a_bit_that_flipped_in_any_record_stops_a_conversion(
    to: str, record: str, torchs: Path, tmp_path: Path, capsys: Any
) -> None:
    name = flip_in(torchs, record)
    code, out, err = run(capsys, "convert", torchs, tmp_path / "out", "--to", to)
    assert (code, out) == (1, "")
    assert f"{torchs}: its record '{name}' is damaged: bad CRC-32" in err
    assert "take another copy of the file" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unchecked_converts_what_is_there(torchs: Path, tmp_path: Path, capsys: Any) -> None:
    flip_in(torchs, "data/1")
    assert run(capsys, "convert", torchs, tmp_path / "out.pt", "--to", "torch", "--unchecked")[0] == 0
    _assert_same(*(torch.load(path, weights_only=True) for path in (tmp_path / "out.pt", torchs)), keys=("state",))


def test_inspect_names_every_damaged_record_and_exits_with_1(torchs: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "inspect", torchs)
    assert code == 0
    assert "whole: every checksum was compared" in out
    names = [flip_in(torchs, "data/1"), flip_in(torchs, "data/2")]
    code, out, _ = run(capsys, "inspect", torchs, "--json")
    assert code == 1
    found = json.loads(out)
    assert found["is_verified"]
    assert [name in line for name, line in zip(names, found["damage"], strict=True)] == [True, True]
    code, out, _ = run(capsys, "inspect", torchs, "--quick")
    assert code == 0
    assert "checksums were not compared" in out


def test_inspect_of_a_file_that_damage_makes_unreadable_names_the_record(torchs: Path, capsys: Any) -> None:
    name = flip_in(torchs, "data.pkl")
    code, out, err = run(capsys, "inspect", torchs)
    assert (code, out) == (1, "")
    assert f"'{name}' is damaged" in err


def test_a_file_that_was_cut_short_says_so(torchs: Path, tmp_path: Path, capsys: Any) -> None:
    torchs.write_bytes(torchs.read_bytes()[:-1000])
    for arguments in (("inspect", torchs), ("convert", torchs, tmp_path / "out", "--to", "pagedopt")):
        code, _, err = run(capsys, *arguments)
        assert code == 1
        assert "cut short" in err


def test_a_file_without_checksums_is_converted_only_when_asked(tmp_path: Path, capsys: Any) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(others_state("torch"), tmp_path / "in.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    code, _, err = run(capsys, "convert", tmp_path / "in.pt", tmp_path / "out.pt", "--to", "torch")
    assert code == 1
    assert "has no checksums" in err
    assert "--unchecked" in err
    assert run(capsys, "convert", tmp_path / "in.pt", tmp_path / "out.pt", "--to", "torch", "--unchecked")[0] == 0
    code, out, _ = run(capsys, "inspect", tmp_path / "in.pt")
    assert code == 0
    assert "no checksums to compare" in out


def test_a_file_from_before_archives_is_converted_with_one_warning(tmp_path: Path, capsys: Any) -> None:
    torch.save(others_state("torch"), tmp_path / "in.pt", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="has no checksums: damaged tensors cannot be seen") as warned:
        code, _, _ = run(capsys, "convert", tmp_path / "in.pt", tmp_path / "out.pt", "--to", "torch")
    assert code == 0
    assert len(warned) == 1
    assert run(capsys, "convert", tmp_path / "in.pt", tmp_path / "out.pt", "--to", "torch", "--unchecked")[0] == 0
    assert "no checksums to compare" in run(capsys, "inspect", tmp_path / "in.pt")[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no file of torch.save: it is empty"),
        (b"{}", "is no file of torch.save"),
        ((2).to_bytes(8, "little") + b"{}", "is no file of torch.save"),  # safetensors, which torch.load knows
        (b"\x80\x02garbage", "cannot be read as a state dict of torch"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*from before 1.6")
def test_what_torch_did_not_save_is_refused_as_that(content: bytes, said: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in.pt").write_bytes(content)
    for arguments in (
        ("inspect", tmp_path / "in.pt"),
        ("convert", tmp_path / "in.pt", tmp_path / "o", "--to", "torch"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert said in err
        assert "weights_only" not in err


def test_an_object_that_would_have_to_be_run_is_named_and_nobody_is_told_to_run_it(tmp_path: Path, capsys: Any) -> None:
    for number, thing in enumerate((_Evil(), Path("x"))):
        torch.save({"state": {}, "param_groups": [], "args": thing}, tmp_path / f"{number}.pt")
        code, _, err = run(capsys, "inspect", tmp_path / f"{number}.pt")
        assert code == 1
        assert "which would have to be run; save the optimizer's state dict alone" in err
        assert f"{number}.pt cannot be read as a state dict of torch: it has " in err
        assert "weights_only" not in err


def test_a_folder_is_no_place_for_a_file(torchs: Path, tmp_path: Path, capsys: Any) -> None:
    for target in (tmp_path, Path()):
        code, out, err = run(capsys, "convert", torchs, target, "--to", "torch")
        assert (code, out) == (1, "")
        assert f"cannot write {target}: it is a folder; name a file in it" in err


def test_an_archive_that_somebody_packed_anew_with_compression_is_read(torchs: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(torchs) as stored, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for record in stored.infolist():
            packed.writestr(record.filename, stored.read(record))
    assert convert(tmp_path / "z.pt", tmp_path / "out.pt", "torch") == 1
    _assert_same(*(torch.load(path, weights_only=True) for path in (tmp_path / "out.pt", torchs)), keys=("state",))


def test_checking_a_file_takes_no_memory_that_grows_with_it(tmp_path: Path) -> None:
    torch.save({"state": {}, "param_groups": [], "more": torch.zeros(32 << 20, dtype=torch.uint8)}, tmp_path / "in.pt")
    tracemalloc.start()
    try:
        with open_archive(tmp_path / "in.pt") as archive:
            assert list(archive.damage()) == []
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def outcome(source: Path, target: Path) -> str:
    try:
        convert(source, target, "torch")
    except CheckpointError as error:
        return f"refused: {source.name if str(source) in str(error) else error}"
    return "converted"


def test_a_damaged_file_of_torchs_is_refused_or_was_damaged_where_nothing_is_read(tmp_path: Path) -> None:
    torch.save(optimizer_of("8-clipped", TINY).state_dict(), tmp_path / "whole.pt")
    convert(tmp_path / "whole.pt", tmp_path / "expected.pt", "torch")
    whole, rng = (tmp_path / "whole.pt").read_bytes(), random.Random(0)
    expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    ways = [way for way in mutations.WAYS if callable(way)]
    outcomes = set()
    for _ in range(400):
        (tmp_path / "in.pt").write_bytes(rng.choice(ways)(whole, rng))
        outcomes.add(outcome(tmp_path / "in.pt", tmp_path / "out.pt"))
        if (tmp_path / "out.pt").exists():
            _assert_same(torch.load(tmp_path / "out.pt", weights_only=True), expected)
            (tmp_path / "out.pt").unlink()
    assert {"converted", "refused: in.pt"} == outcomes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.pt", "in.pt", "whole.pt"]


def test_a_checkpoint_converts_to_other_bits(tmp_path: Path, capsys: Any) -> None:
    optimizer = optimizer_of("32")
    pagedopt.save(optimizer, tmp_path / "in")
    run(capsys, "convert", tmp_path / "in", tmp_path / "out", "--to", "pagedopt", "--bits", "8")
    loaded, expected = like("8"), like("8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected.load_state_dict(optimizer.state_dict())
    pagedopt.load(loaded, tmp_path / "out")
    assert differences(contents(loaded), contents(expected)) == []


def test_large_state_is_put_together_in_files_beside_the_result(tmp_path: Path, monkeypatch: Any) -> None:
    from pagedopt.checkpoint import convert as module

    optimizer = optimizer_of("8")
    pagedopt.save(optimizer, tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "small.pt", "torch")
    monkeypatch.setattr(module, "_IN_RAM_NBYTES", 0)
    convert(tmp_path / "in", tmp_path / "large.pt", "torch")
    _assert_same(*(torch.load(tmp_path / name, weights_only=True) for name in ("small.pt", "large.pt")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "large.pt", "small.pt"]


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first-tensor", "midway", "last-tensor"])
def test_damage_stops_a_conversion_and_what_was_there_stays(
    where: float, saved: Path, tmp_path: Path, capsys: Any
) -> None:
    before = {"torch": tmp_path / "before.pt", "pagedopt": tmp_path / "before"}
    for to, target in before.items():
        assert run(capsys, "convert", saved, target, "--to", to, "--bits", 32)[0] == 0
    paths = sorted(saved.glob("*.safetensors"))
    path = paths[int(where * (len(paths) - 1))]
    raw = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(raw[:8], "little")
    raw[first + int(where * (len(raw) - 1 - first))] ^= 1
    path.write_bytes(raw)
    untouched = {**files_in(before["pagedopt"]), "before.pt": before["torch"].read_bytes()}
    there = sorted(tmp_path.rglob("*"))

    for to, target in (
        ("torch", before["torch"]),
        ("bitsandbytes", before["torch"]),
        ("pagedopt", before["pagedopt"]),
        ("torch", tmp_path / "new.pt"),
        ("pagedopt", tmp_path / "new"),
    ):
        code, out, err = run(capsys, "convert", saved, target, "--to", to)
        assert code == 1
        assert not out
        assert f"{path.name}: layer." in err
        assert "its checksum differs" in err
    assert {**files_in(before["pagedopt"]), "before.pt": before["torch"].read_bytes()} == untouched
    assert sorted(tmp_path.rglob("*")) == there, "nothing half-written stays beside it"


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(saved: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "convert", saved, tmp_path / "missing" / "out.pt", "--to", "torch")
    assert code == 1
    assert "cannot write" in err
    (tmp_path / "file").write_bytes(b"x")
    code, _, err = run(capsys, "convert", saved, tmp_path / "file", "--to", "pagedopt")
    assert code == 1
    assert "cannot save to" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "flax"),
        ("--to", "bitsandbytes", "--bits", "4"),
        ("--to", "torch", "--bits", "8"),
        ("--to", "torch", "--wrapped"),
        (),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_exits_with_2(arguments: tuple[str, ...], saved: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "convert", saved, saved.parent / "out", *arguments)
    assert code == 2
    assert not out
    assert "--" in err
    assert not (saved.parent / "out").exists()


def test_a_torch_file_with_more_than_an_optimizer_says_what_it_has(tmp_path: Path, capsys: Any) -> None:
    params = random_params([(4,)])
    optimizer = AdamW(params)
    train(optimizer, params, 1)
    torch.save({"model": {}, "optimizer": optimizer.state_dict()}, tmp_path / "all.pt")
    code, _, err = run(capsys, "convert", tmp_path / "all.pt", tmp_path / "out", "--to", "pagedopt")
    assert code == 1
    assert "'model', 'optimizer'" in err
    assert "save that alone" in err


def test_every_command_is_documented_with_its_exit_code_and_an_example(capsys: Any) -> None:
    for command in ("inspect", "convert"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert "Exits with 1" in out
        assert f"Example: pagedopt {command}" in out
