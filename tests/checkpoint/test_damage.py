"""A checkpoint that is not what was saved is refused with the file and the reason, and nothing half-loaded stays.

PAGEDOPT_TORTURE=1 makes ten times as many.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import mutations
import pagedopt
from mutations import MANIFEST, Files, manifest_body, with_manifest
from oracle import train
from pagedopt import CheckpointError, PagedAdamW, Pager
from residue import needs_proc
from states import TINY, contents, differences, files_in, optimizer_of, params_of

FACTOR = 10 if os.environ.get("PAGEDOPT_TORTURE") else 1
DAMAGED, HOSTILE = 4000 * FACTOR, 2000 * FACTOR
PROCESS_NBYTES = 48 << 20
"""More than this is out of proportion to files of 12 KB."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """Two checkpoints of one optimizer, each of a manifest and two data files."""
    folder, optimizer, made = tmp_path_factory.mktemp("whole"), optimizer_of("8-clipped", TINY), []
    for step in (2, 3):
        train(optimizer, params_of(optimizer), range(step, step + 1))
        pagedopt.save(optimizer, folder, max_file_size=1)
        made.append(files_in(folder))
    return made


@pytest.fixture(scope="module")
def original(checkpoints: list[Files], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("original")
    lay_down(checkpoints[0], folder)
    optimizer = fresh()
    pagedopt.load(optimizer, folder)
    return contents(optimizer)


def fresh() -> PagedAdamW:
    params = [(f"layer.{index}", Parameter(torch.zeros(shape))) for index, shape in enumerate(TINY)]
    pager = Pager(page_size="64KiB")  # its own, so that its pages can be counted
    return PagedAdamW(params, lr=1e-2, optim_bits=8, percentile_clipping=30, pager=pager)


def lay_down(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def attempt(folder: Path, said: str, optimizer: PagedAdamW, before: dict[str, Any] | None) -> bool:
    """Load; return whether that went well. If not, the error must say what and where, and nothing be changed."""
    groups = [dict(group) for group in optimizer.param_groups]
    refusal = _refusal(optimizer, folder)
    if refusal is None:
        return True
    message = str(refusal)
    assert isinstance(refusal, CheckpointError) or "loaded state dict" in message, (said, repr(refusal))
    assert re.search(r"\.json|\.safetensors|no checkpoint|cannot be loaded|saved|loaded state dict", message), said
    assert "\n" not in message, (said, message)
    assert [dict(group) for group in optimizer.param_groups] == groups, said
    if before is None:
        assert not optimizer.state, said
        assert optimizer.memory_stats().pages == 0, said
    else:
        assert differences(contents(optimizer), before) == [], said
    return False


def _refusal(optimizer: PagedAdamW, folder: Path) -> ValueError | None:
    try:
        pagedopt.load(optimizer, folder)
    except ValueError as error:
        return error
    return None


@pytest.fixture
def memory_is_in_proportion() -> Iterator[None]:
    """Fail if the process ever had much more memory than when the test began."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    assert _peak() - before < PROCESS_NBYTES


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


@needs_proc
@pytest.mark.usefixtures("memory_is_in_proportion")
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_is_refused_or_exactly_what_was_saved(
    seed: int, checkpoints: list[Files], original: dict[str, Any], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    survived, optimizer, others = 0, fresh(), dict(checkpoints[1])
    for _ in range(DAMAGED // 4):
        files, said = mutations.damaged(checkpoints[0], others, rng)
        lay_down(files, tmp_path / "damaged")
        if attempt(tmp_path / "damaged", said, optimizer, None):
            survived += 1
            assert files[MANIFEST] == others[MANIFEST] or differences(contents(optimizer), original) == [], said
            optimizer = fresh()
    assert survived < DAMAGED // 4 * 0.2, "most changes are changes"


@needs_proc
@pytest.mark.usefixtures("memory_is_in_proportion")
@pytest.mark.parametrize("seed", range(2))
def test_a_hostile_manifest_is_an_error_or_a_checkpoint_and_nothing_worse(
    seed: int, checkpoints: list[Files], tmp_path: Path
) -> None:
    rng, optimizer, refused = random.Random(seed), fresh(), 0
    for _ in range(HOSTILE // 2):
        files, said = mutations.hostile(checkpoints[0], rng)
        lay_down(files, tmp_path / "hostile")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if attempt(tmp_path / "hostile", said, optimizer, None):
                contents(optimizer)
                optimizer = fresh()
            else:
                refused += 1
    assert refused > HOSTILE // 2 * 0.5


def test_state_that_was_there_stays_to_the_bit_whatever_is_wrong(checkpoints: list[Files], tmp_path: Path) -> None:
    rng, optimizer = random.Random(5), fresh()
    train(optimizer, params_of(optimizer), 1)
    before = contents(optimizer)
    for _ in range(100 * FACTOR):
        files, said = mutations.damaged(checkpoints[0], checkpoints[1], rng)
        lay_down(files, tmp_path / "damaged")
        if attempt(tmp_path / "damaged", said, optimizer, before):
            optimizer = fresh()
            train(optimizer, params_of(optimizer), 1)
            before = contents(optimizer)


def test_every_single_byte_matters(checkpoints: list[Files], tmp_path: Path) -> None:
    """One bit of every byte of every file, one after the other (every 7th byte in the ordinary suite)."""
    folder, optimizer = tmp_path / "flipped", fresh()
    lay_down(checkpoints[0], folder)
    for name, data in checkpoints[0].items():
        for index in range(0, len(data), 1 if FACTOR > 1 else 7):
            flipped = bytearray(data)
            flipped[index] ^= 1 << index % 8
            (folder / name).write_bytes(flipped)
            assert not attempt(folder, f"{name}[{index}]", optimizer, None), f"{name}[{index}]"
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 9, 100])
def test_a_file_cut_short_is_refused(nbytes: int, checkpoints: list[Files], tmp_path: Path) -> None:
    for name, data in checkpoints[0].items():
        lay_down({**checkpoints[0], name: data[:nbytes]}, tmp_path / "cut")
        with pytest.raises(CheckpointError, match=re.escape(name)):
            pagedopt.load(fresh(), tmp_path / "cut")


def test_each_kind_of_damage_says_its_file_and_reason(checkpoints: list[Files], tmp_path: Path) -> None:
    files, folder = checkpoints[0], tmp_path / "checkpoint"
    data = next(name for name in files if name != MANIFEST)
    cases = [
        ({**files, data: files[data][:-1]}, rf"{data} has \d+ bytes, and the manifest says \d+"),
        ({**files, data: files[data][:-1] + b"?"}, rf"{data}: layer\.\d\.\w+ is damaged: its checksum differs"),
        ({**files, data: files[data].replace(b"F32", b"I32", 1)}, rf"{data} is damaged, or another checkpoint's"),
        ({name: raw for name, raw in files.items() if name != data}, rf"{data} is missing"),
        ({**files, MANIFEST: files[MANIFEST].replace(b"0.01", b"0.02")}, rf"{MANIFEST}: it is damaged: its checksum"),
        ({**files, MANIFEST: b"\x80\x04\x95."}, rf"{MANIFEST}: it does not begin as"),
        (
            {**files, MANIFEST: files[MANIFEST].replace(b": 1,", b": 9,", 1)},
            "it is of version 9, and this pagedopt reads",
        ),
        (
            with_manifest(files, {**manifest_body(files), "codec": "dynamic8/2"}),
            "codec 'dynamic8/2'; this pagedopt reads",
        ),
        ({}, "is no checkpoint: it has no pagedopt.json"),
    ]
    for changed, said in cases:
        lay_down(changed, folder)
        with pytest.raises(CheckpointError, match=said):
            pagedopt.load(fresh(), folder)
    with pytest.raises(CheckpointError, match="nothing is no checkpoint"):
        pagedopt.load(fresh(), tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="file is a file, and a checkpoint is a folder"):
        pagedopt.load(fresh(), tmp_path / "file")


@pytest.mark.parametrize("name", ["../state-0000000000000000-00000.safetensors", "/etc/passwd", MANIFEST, "state.bin"])
def test_a_manifest_can_name_only_files_of_its_folder(name: str, checkpoints: list[Files], tmp_path: Path) -> None:
    body = manifest_body(checkpoints[0])
    body["files"][0] = name
    lay_down(with_manifest(checkpoints[0], body), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="the names of its files are none"):
        pagedopt.load(fresh(), tmp_path / "checkpoint")


def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_and_not_waited_for(
    checkpoints: list[Files], tmp_path: Path
) -> None:
    for name, make in itertools.product(
        checkpoints[0], (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir)
    ):
        lay_down(checkpoints[0], tmp_path / "checkpoint")
        (tmp_path / "checkpoint" / name).unlink()
        make(tmp_path / "checkpoint" / name)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read: (not a regular file|is a directory)"):
            pagedopt.load(fresh(), tmp_path / "checkpoint")


def test_a_checkpoint_that_is_nested_without_end_is_refused(checkpoints: list[Files], tmp_path: Path) -> None:
    for depth in (200, 2000, 200_000):
        body = json_with('"' + "x" * 3 + '"', depth)
        files = with_manifest(checkpoints[0], manifest_body(checkpoints[0]))
        rest = b'"codec": ' + body + b"}"
        lay_down({**files, MANIFEST: _signed(rest)}, tmp_path / "checkpoint")
        with pytest.raises(CheckpointError, match=r"nested too deeply|is no text"):
            pagedopt.load(fresh(), tmp_path / "checkpoint")


def json_with(inner: str, depth: int) -> bytes:
    return ("[" * depth + inner + "]" * depth).encode()


def _signed(rest: bytes) -> bytes:
    from xxhash import xxh3_128_hexdigest

    return f'{{"pagedopt_checkpoint": 1, "checksum": "{xxh3_128_hexdigest(rest)}",\n'.encode() + rest
