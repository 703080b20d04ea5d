"""Each call of a save and of a load to the operating system fails in turn, and power fails between any two."""

from __future__ import annotations

import errno
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import pagedopt
from disks import FailingOs, RecordingOs, images
from mutations import MANIFEST, Files
from oracle import train, twins
from pagedopt import CheckpointError, PagedAdamW, StateLostError
from pagedopt.checkpoint import file_reader, file_writer, files
from states import contents, differences, files_in, optimizer_of, params_of
from strategies import STATE_KINDS

SHAPES: list[tuple[int, ...]] = [(64, 300), (5,)]
"""40 KB: with chunks of 16 KB each file is stored in several calls, by threads."""

FAULTS = [
    pytest.param({"error": errno.EIO}, id="EIO"),
    pytest.param({"error": errno.EIO, "lasting": True}, id="EIO-lasting"),
    pytest.param({"error": errno.ENOSPC}, id="ENOSPC"),
    pytest.param({"error": errno.ENOSPC, "lasting": True}, id="ENOSPC-lasting"),
    pytest.param({"error": errno.ENOSPC, "lasting": True, "short": True}, id="short-lasting"),
    pytest.param({"error": errno.EIO, "short": True}, id="short"),
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_writer, "CHUNK", 1 << 14)
    monkeypatch.setattr(file_reader, "CHUNK", 1 << 14)
    monkeypatch.setattr(file_reader, "_MAX_CHUNKS", 2)  # what is read a second time is read from the disk again


@pytest.fixture(scope="module")
def steps() -> list[PagedAdamW]:
    """The same optimizer after two steps and after three."""
    return [optimizer_of("8-clipped", SHAPES, steps=steps) for steps in (2, 3)]


def new() -> PagedAdamW:
    (params,) = twins(params_of(optimizer_of("8-clipped", SHAPES, steps=0)), 1)
    named = [(f"layer.{index}", param) for index, param in enumerate(params)]
    return PagedAdamW(named, page_size="64KiB", **STATE_KINDS["8-clipped"])


def lay_down(found: Files | None, folder: Path) -> None:
    """Make the folder hold these files and nothing else; None: remove it and the one that it is in."""
    if found is None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in found.items():
        (folder / name).write_bytes(data)


def step_in(folder: Path, known: list[dict[str, Any]]) -> int:
    """Return which of the known states the checkpoint in `folder` is, to the bit."""
    loaded = new()
    pagedopt.load(loaded, folder)
    return [differences(contents(loaded), one) for one in known].index([])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("was_there", [True, False], ids=["replacing", "first"])
def test_a_save_whose_disk_fails_leaves_the_old_checkpoint_or_the_new(
    fault: dict[str, Any], was_there: bool, steps: list[PagedAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [contents(one) for one in steps]
    pagedopt.save(steps[0], tmp_path / "old")
    old = files_in(tmp_path / "old") if was_there else None
    folder, seen = tmp_path / "folder" / "checkpoint", set()
    for fails_at in range(1, 1000):
        lay_down(old, folder)
        system = FailingOs(fails_at, **fault)
        error = _failure(system, monkeypatch, lambda: pagedopt.save(steps[1], folder))
        if system.failed is None:
            break
        seen.add(system.failed)
        where = f"{system.failed}, call {fails_at}"
        assert error is None or isinstance(error, CheckpointError), (where, repr(error))
        if error is None or was_there or (folder / MANIFEST).exists():
            assert step_in(folder, known) == 1 or (error is not None and was_there), where
        if error is not None and "nothing was changed" in str(error) and not fault.get("lasting"):
            assert (files_in(folder) if folder.parent.exists() else None) == old, f"{where}: something was left behind"
        pagedopt.save(steps[1], folder)
        assert step_in(folder, known) == 1, where
        assert len(files_in(folder)) == 2, f"{where}: the next save tidies up"
    assert {"open", "fsync", "pwritev", "replace", "ftruncate", "posix_fallocate"} <= seen
    assert ("unlink" if was_there else "mkdir") in seen


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("has_state", [False, True], ids=["new", "stepped"])
def test_a_load_whose_disk_fails_leaves_nothing_half_loaded(
    fault: dict[str, Any], has_state: bool, steps: list[PagedAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = contents(steps[1])
    pagedopt.save(steps[1], tmp_path)
    seen, outcomes = set(), set()
    for fails_at in range(1, 1000):
        optimizer = new()
        if has_state:
            train(optimizer, params_of(optimizer), 1)
        before = contents(optimizer)
        system = FailingOs(fails_at, **fault)
        error = _failure(system, monkeypatch, lambda optimizer=optimizer: pagedopt.load(optimizer, tmp_path))
        if system.failed is None:
            break
        seen.add(system.failed)
        where = f"{system.failed}, call {fails_at}"
        if error is None:
            assert differences(contents(optimizer), saved) == [], where
            outcomes.add("loaded")
            continue
        assert isinstance(error, CheckpointError), (where, repr(error))
        try:
            assert differences(contents(optimizer), before) == [], where
            outcomes.add("unchanged")
        except StateLostError:
            assert has_state, f"{where}: a new optimizer is new again"
            outcomes.add("lost")
            with pytest.raises(StateLostError, match="load again, or clear"):
                optimizer.step()
        pagedopt.load(optimizer, tmp_path)
        assert differences(contents(optimizer), saved) == [], where
    assert {"open", "fstat", "preadv"} <= seen
    assert "unchanged" in outcomes
    is_continued = fault.get("short") and not fault.get("lasting")
    assert ("lost" in outcomes) == (has_state and not is_continued), "as when the second reading fails"


def _failure(system: FailingOs, monkeypatch: pytest.MonkeyPatch, act: Any) -> BaseException | None:
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a file could not be removed is said
        patch.setattr(files, "os", system)
        try:
            act()
        except Exception as error:  # noqa: BLE001 - which one it is, is what the tests look at
            return error
    return None


def test_a_full_disk_is_said_with_what_is_left(steps: list[PagedAdamW], tmp_path: Path, monkeypatch: Any) -> None:
    class Full(FailingOs):
        def posix_fallocate(self, fd: int, offset: int, nbytes: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "os", Full(10**9))
    with pytest.raises(CheckpointError, match=r"cannot save to .*: no space left on device; nothing was changed there"):
        pagedopt.save(steps[0], tmp_path)
    assert files_in(tmp_path) == {}


def test_a_file_that_cannot_be_removed_is_said_and_the_save_holds(
    steps: list[PagedAdamW], tmp_path: Path, monkeypatch: Any
) -> None:
    class Sticky(FailingOs):
        def unlink(self, path: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    pagedopt.save(steps[0], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Sticky(10**9))
        with pytest.warns(UserWarning, match="is of no use and could not be removed") as said:
            pagedopt.save(steps[1], tmp_path)
    assert said[0].filename == __file__
    assert step_in(tmp_path, [contents(one) for one in steps]) == 1


def test_a_file_that_cannot_be_read_is_named_with_its_cause(
    steps: list[PagedAdamW], tmp_path: Path, monkeypatch: Any
) -> None:
    class Unreadable(FailingOs):
        def preadv(self, fd: int, into: list[memoryview], offset: int) -> int:
            if offset:
                raise OSError(errno.EIO, "Input/output error")
            return os.preadv(fd, into, offset)

    pagedopt.save(steps[0], tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr(files, "os", Unreadable(10**9))
    with pytest.raises(CheckpointError, match=f"{path.name} cannot be read: input/output error") as refused:
        pagedopt.load(new(), tmp_path)
    cause: BaseException | None = refused.value
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    assert cause is not None
    assert cause.errno == errno.EIO


def test_a_file_that_cannot_be_closed_after_it_was_read_is_said_and_the_load_holds(
    steps: list[PagedAdamW], tmp_path: Path, monkeypatch: Any
) -> None:
    class Unclosable(FailingOs):
        def close(self, fd: int) -> None:
            os.close(fd)
            raise OSError(errno.EIO, "Input/output error")

    pagedopt.save(steps[0], tmp_path)
    loaded = new()
    monkeypatch.setattr(files, "os", Unclosable(10**9))
    with pytest.warns(UserWarning, match="was read, and could not be closed: Input/output error") as said:
        pagedopt.load(loaded, tmp_path)
    assert len(said) == 2, "the manifest and the data file"
    assert differences(contents(loaded), contents(steps[0])) == []


# Power cuts: what was not synced may be lost.


def survivors(steps: list[PagedAdamW], folder: Path, monkeypatch: pytest.MonkeyPatch, *, first: bool) -> list[str]:
    """Save over a checkpoint on a disk that may lose what was not synced; return what went wrong, if anything did."""
    known, scratch = [contents(one) for one in steps], folder / "image"
    work = folder / "checkpoint"
    work.mkdir(exist_ok=True)
    if not first:
        pagedopt.save(steps[0], work)
    with monkeypatch.context() as patch:
        system = RecordingOs(work)
        patch.setattr(files, "os", system)
        pagedopt.save(steps[1], work)
    wrong, rng = [], random.Random(0)
    for number, (what, moment) in enumerate(system.moments):
        is_done = number >= max(i for i, (call, _) in enumerate(system.moments) if call == "sync folder")
        for image in images(moment, rng, 4):
            lay_down(image, scratch)
            outcome = _outcome(scratch, known)
            allowed = {1} if is_done else {0, 1} if not first else {None, 1}
            if outcome not in allowed:
                wrong.append(f"after {what!r} (call {number} of {len(system.moments)}): {outcome}")
    shutil.rmtree(work)
    return wrong


def _outcome(folder: Path, known: list[dict[str, Any]]) -> int | str | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        return step_in(folder, known)
    except (CheckpointError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("first", [False, True], ids=["replacing", "first"])
def test_a_power_cut_at_any_moment_leaves_the_old_checkpoint_or_the_new(
    first: bool, steps: list[PagedAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert survivors(steps, tmp_path, monkeypatch, first=first) == []


def test_syncing_the_files_is_needed(steps: list[PagedAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the simulated disk does lose a checkpoint: so the test above can tell."""
    monkeypatch.setattr(files, "sync", lambda _: None)
    assert survivors(steps, tmp_path, monkeypatch, first=False) != []


@pytest.mark.parametrize("left_out", [1, 2], ids=["before-the-rename", "after-it"])
def test_each_of_the_two_folder_syncs_is_needed(
    left_out: int, steps: list[PagedAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first a new manifest may name files that have no name; without the second an old one may come back
    whose files were removed."""
    real, calls = files.sync_folder, []

    def sometimes(folder: Path) -> None:
        calls.append(folder)
        if len(calls) != left_out:
            real(folder)

    work = tmp_path / "checkpoint"
    pagedopt.save(steps[0], work)
    before, system = set(files_in(work)) - {MANIFEST}, RecordingOs(work)
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", sometimes)
        patch.setattr(files, "os", system)
        pagedopt.save(steps[1], work)
    assert len(calls) == 2
    known, wrong = [contents(one) for one in steps], set()
    for _, moment in system.moments:
        for image in images(moment, random.Random(0), 0):
            lay_down(image, tmp_path / "image")
            outcome = _outcome(tmp_path / "image", known)
            if outcome not in (0, 1):
                wrong.add(str(outcome))
    ((said),) = wrong
    assert said.endswith("is missing")
    assert any(name in said for name in before) == (left_out == 2), "which checkpoint lacks a file"
