"""Each call of a save and of a load to the operating system fails in turn, and power fails between any two."""

from __future__ import annotations

import errno
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import pagedopt
from disks import FailingOs, RecordingOs, images
from mutations import MANIFEST, Files
from oracle import twins
from pagedopt import CheckpointError, PagedAdamW
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


@pytest.fixture(scope="module")
def steps() -> list[PagedAdamW]:
    """The same optimizer after two steps and after three."""
    return [optimizer_of("8-clipped", SHAPES, steps=steps) for steps in (2, 3)]


def new() -> PagedAdamW:
    (params,) = twins(params_of(optimizer_of("8-clipped", SHAPES, steps=0)), 1)
    named = [(f"layer.{index}", param) for index, param in enumerate(params)]
    return PagedAdamW(named, page_size="64KiB", **STATE_KINDS["8-clipped"])


def lay_down(found: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
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
    old = files_in(tmp_path / "old") if was_there else {}
    folder, seen = tmp_path / "checkpoint", set()
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
            assert files_in(folder) == old, f"{where}: something was left behind"
        pagedopt.save(steps[1], folder)
        assert step_in(folder, known) == 1, where
        assert len(files_in(folder)) == 2, f"{where}: the next save tidies up"
    assert {"open", "fsync", "pwritev", "replace", "ftruncate", "posix_fallocate"} <= seen
    assert was_there <= ("unlink" in seen)


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


@pytest.mark.parametrize("left_out", ["sync", "sync_folder"])
def test_every_kind_of_sync_is_needed(
    left_out: str, steps: list[PagedAdamW], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the simulated disk does lose a checkpoint: so the test above can tell."""
    monkeypatch.setattr(files, left_out, lambda _: None)
    if left_out == "sync_folder":
        with pytest.raises(ValueError, match="max"):  # then nothing is ever done for sure
            survivors(steps, tmp_path, monkeypatch, first=False)
    else:
        assert survivors(steps, tmp_path, monkeypatch, first=False) != []
