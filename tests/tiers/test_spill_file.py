"""The spill file against an operating system that does less than it was asked."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pagedopt.errors import SpillError
from pagedopt.tiers import spill_file
from pagedopt.tiers.buffers import bytes_of, new_host_buffer
from pagedopt.tiers.spill_file import SpillFile

NBYTES = 16 << 10


@pytest.fixture(params=[False, True], ids=["cached", "direct"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> SpillFile:
    file = SpillFile(tmp_path, direct=request.param)
    file.extend(4 * NBYTES)
    return file


def buffer(seed: int | None = None) -> memoryview:
    tensor = new_host_buffer(NBYTES)
    view = bytes_of(tensor)
    if seed is not None:
        view[:] = random.Random(seed).randbytes(NBYTES)
    _kept.append(tensor)
    return view


_kept: list[object] = []  # a view does not keep its tensor


@pytest.fixture(autouse=True)
def _forget_buffers() -> None:
    _kept.clear()


def test_what_was_written_is_read_back(file: SpillFile) -> None:
    sources = [buffer(seed) for seed in range(4)]
    for place in (2, 0, 3, 1):
        file.write(sources[place], place * NBYTES)
    for place, source in enumerate(sources):
        into = buffer()
        file.read(into, place * NBYTES)
        assert into == source


def test_the_file_is_private_and_has_no_name(file: SpillFile, tmp_path: Path) -> None:
    status = os.fstat(file.fd)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    assert file.is_nameless
    assert list(tmp_path.iterdir()) == []


def test_room_is_really_taken(file: SpillFile) -> None:
    assert os.fstat(file.fd).st_blocks * 512 >= 4 * NBYTES == file.nbytes


def test_close_gives_the_descriptor_back_and_may_be_called_again(file: SpillFile) -> None:
    fd = file.fd
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_dropped_file_is_closed_at_once(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    fd = file.fd
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has only files with names")
def test_where_nameless_files_are_missing_the_name_is_removed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "open", errno.EOPNOTSUPP, lambda _, flags, *rest: flags & os.O_TMPFILE == os.O_TMPFILE)
    file = SpillFile(tmp_path)
    assert file.is_nameless
    assert list(tmp_path.iterdir()) == []
    assert stat.S_IMODE(os.fstat(file.fd).st_mode) == 0o600


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has only files with names")
def test_where_open_files_keep_their_name_it_goes_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "open", errno.EOPNOTSUPP, lambda _, flags, *rest: flags & os.O_TMPFILE == os.O_TMPFILE)
    unlink = Path.unlink

    def busy(path: Path, missing_ok: bool = False) -> None:
        if not missing_ok:
            raise OSError(errno.EBUSY, "busy")
        unlink(path, missing_ok=True)

    monkeypatch.setattr(Path, "unlink", busy)
    file = SpillFile(tmp_path)
    assert not file.is_nameless
    assert len(list(tmp_path.iterdir())) == 1
    file.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EMFILE, errno.EROFS])
def test_a_file_that_cannot_be_made_says_where_and_why(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "open", code)
    with pytest.raises(SpillError, match="could not make a spill file in") as caught:
        SpillFile(tmp_path)
    assert caught.value.errno == code
    assert str(tmp_path) in str(caught.value)
    assert "set spill_dir" in str(caught.value)


def test_a_full_disk_shows_when_room_is_taken(file: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "posix_fallocate", errno.ENOSPC)
    with pytest.raises(SpillError, match="could not take 1 MiB for the spill file") as caught:
        file.extend(1 << 20)
    assert caught.value.errno == errno.ENOSPC
    assert file.nbytes == 4 * NBYTES


def test_without_preallocation_room_is_taken_by_writing_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "posix_fallocate", errno.EOPNOTSUPP)
    file = SpillFile(tmp_path)
    file.extend(3 << 20)
    file.extend(12 << 10)
    status = os.fstat(file.fd)
    assert status.st_size == file.nbytes == (3 << 20) + (12 << 10)
    assert status.st_blocks * 512 >= file.nbytes


def test_a_file_system_without_direct_transfers_uses_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "pwritev", errno.EINVAL)
    file = SpillFile(tmp_path)
    monkeypatch.undo()
    assert not file.is_direct
    file.extend(NBYTES)
    source = buffer(1)
    file.write(source[1:100], 3)
    into = buffer()
    file.read(into[1:100], 3)
    assert into[1:100] == source[1:100]


def test_an_error_of_the_first_direct_transfer_is_not_taken_for_a_missing_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "pwritev", errno.EIO)
    with pytest.raises(SpillError, match="told to fail"):
        SpillFile(tmp_path)


def test_short_reads_and_writes_are_continued(file: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    calls: list[int] = []

    def shortened(real: Callable[..., int]) -> Callable[..., int]:
        def move(fd: int, views: Sequence[memoryview], offset: int) -> int:
            calls.append(len(views[0]))
            part = views[0][: 4096 * rng.randint(1, 2)]
            return real(fd, [part], offset)

        return move

    monkeypatch.setattr(os, "preadv", shortened(os.preadv))
    monkeypatch.setattr(os, "pwritev", shortened(os.pwritev))
    source, into = buffer(1), buffer()
    file.write(source, NBYTES)
    file.read(into, NBYTES)
    assert into == source
    assert len(calls) >= 4


@pytest.mark.parametrize(("call", "verb"), [("preadv", "read"), ("pwritev", "write")])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failing_call_is_raised_with_place_and_reason(
    file: SpillFile, call: str, verb: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, call, code)
    with pytest.raises(SpillError, match=f"could not {verb} 16 KiB at {NBYTES} of the spill file") as caught:
        getattr(file, verb)(buffer(1), NBYTES)
    assert caught.value.errno == code


@pytest.mark.parametrize(("call", "verb"), [("preadv", "read"), ("pwritev", "write")])
def test_a_call_that_moves_nothing_is_an_error_and_not_a_hang(
    file: SpillFile, call: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, lambda *_: 0)
    with pytest.raises(SpillError, match=r"ends early|takes no more"):
        getattr(file, verb)(buffer(1), 0)


def test_reading_past_the_end_is_an_error(file: SpillFile) -> None:
    with pytest.raises(SpillError, match="the file ends early"):
        file.read(buffer(), 4 * NBYTES)


def test_a_system_without_positioned_transfers_seeks_under_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_file, "_read_some", spill_file._seek_and_read)
    monkeypatch.setattr(spill_file, "_write_some", spill_file._seek_and_write)
    file = SpillFile(tmp_path, direct=False)
    file.extend(4 * NBYTES)
    sources = [buffer(seed) for seed in range(4)]
    for place in (2, 0, 3, 1):
        file.write(sources[place], place * NBYTES)
    for place, source in enumerate(sources):
        into = buffer()
        file.read(into, place * NBYTES)
        assert into == source


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int, when: Callable[..., bool] = lambda *_: True) -> None:
    """Let `os.<call>` fail with `code`."""
    real = getattr(os, call)

    def failing(*args: object) -> object:
        if when(*args):
            raise OSError(code, "told to fail")
        return real(*args)

    monkeypatch.setattr(os, call, failing)
