"""One data file: written in streams at any offsets and read in spans of any order, it is the bytes that were given."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedopt.checkpoint import file_reader, file_writer, files
from pagedopt.checkpoint.file_reader import FileReader
from pagedopt.checkpoint.file_writer import FileWriter

CHUNK = 3 * 4096


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_writer, "CHUNK", CHUNK)
    monkeypatch.setattr(file_reader, "CHUNK", CHUNK)


def written(path: Path, parts: list[tuple[int, bytes]], nbytes: int) -> bytes:
    path.unlink(missing_ok=True)
    writer = FileWriter(path, nbytes)
    try:
        for offset, data in parts:
            writer.write(offset, memoryview(data))
        writer.finish()
    finally:
        writer.close()
    return path.read_bytes()


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[tuple[int, bytes]], bytes]:
    """Tensors one after the other, each written from its start to its end in pieces, all of them by turns."""
    sizes = draw(st.lists(st.sampled_from((1, 7, 4095, 4096, 5000, 12_288, 30_000, 70_001)), min_size=1, max_size=7))
    rng = random.Random(draw(st.integers(0, 2**32)))
    whole = rng.randbytes(sum(sizes))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    done, parts = [0] * len(sizes), []
    while left := [index for index, size in enumerate(sizes) if done[index] < size]:
        index = rng.choice(left)
        count = min(rng.choice((1, 100, 4096, 9999, 40_000)), sizes[index] - done[index])
        offset = starts[index] + done[index]
        parts.append((offset, whole[offset : offset + count]))
        done[index] += count
    return parts, whole


@given(made=streams())
def test_streams_written_by_turns_are_the_file(made: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    parts, whole = made
    assert written(tmp_path_factory.getbasetemp() / "streams", parts, len(whole)) == whole


@given(data=st.data())
def test_any_span_reads_as_it_is_in_the_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = random.Random(1).randbytes(data.draw(st.sampled_from((0, 1, CHUNK, CHUNK + 1, 200_001))))
    path = tmp_path_factory.getbasetemp() / "spans"
    path.write_bytes(whole)
    reader = FileReader(path)
    try:
        for _ in range(data.draw(st.integers(1, 8))):
            start = data.draw(st.integers(0, len(whole)))
            stop = data.draw(st.integers(start, len(whole)))
            assert b"".join(map(bytes, reader.views(start, stop - start))) == whole[start:stop]
    finally:
        reader.close()


def test_memory_is_a_few_chunks_whatever_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(nbytes: int) -> Any:
        made.append(nbytes)
        return new_buffer(nbytes)

    new_buffer = file_writer.new_host_buffer
    for module in (file_writer, file_reader):
        monkeypatch.setattr(module, "new_host_buffer", counted)
    whole = random.Random(2).randbytes(200 * CHUNK)
    half = len(whole) // 2
    parts = []
    for offset in range(0, half, 5000):
        parts.append((offset, whole[offset : min(offset + 5000, half)]))
        parts.append((half + offset, whole[half + offset : min(half + offset + 5000, len(whole))]))
    assert written(tmp_path / "large", parts, len(whole)) == whole
    assert len(made) <= 9
    made.clear()
    reader = FileReader(tmp_path / "large")
    try:
        for offset in range(0, half, 5000):
            for begin in (offset, half + offset):
                stop = min(begin + 5000, half if begin < half else len(whole))
                assert b"".join(map(bytes, reader.views(begin, stop - begin))) == whole[begin:stop]
    finally:
        reader.close()
    assert len(made) <= 8


@pytest.mark.parametrize("chunks_a_page", [0.3, 1, 2, 9.7])
@pytest.mark.parametrize("bytes_a_value", [(4, 4), (4, 4, 4), (1, 1, 1 / 64, 1 / 64)], ids=["32", "amsgrad", "8"])
def test_a_file_is_read_once_page_by_page(
    bytes_a_value: tuple[float, ...], chunks_a_page: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page has its part of every tensor, so the file is read in as many streams as there are tensors."""
    read: list[int] = []

    def counted(fd: int, into: memoryview, offset: int, nbytes: int) -> None:
        read.append(offset // CHUNK)
        real(fd, into, offset, nbytes)

    real = files.read_chunk
    monkeypatch.setattr(files, "read_chunk", counted)
    num_values = 100 * CHUNK
    sizes = [int(num_values * width) for width in bytes_a_value]
    (tmp_path / "file").write_bytes(bytes(sum(sizes)))
    pages = int(sum(sizes) / CHUNK / chunks_a_page)
    reader = FileReader(tmp_path / "file")
    try:
        for page in range(pages):
            for index, size in enumerate(sizes):
                start, stop = (int(size * at / pages) for at in (page, page + 1))
                for _ in reader.views(sum(sizes[:index]) + start, stop - start):
                    pass
    finally:
        reader.close()
    assert set(read) == set(range(-(-sum(sizes) // CHUNK)))
    assert len(read) <= len(set(read)) + 2 * len(sizes), "where two tensors meet, a chunk may come and go"


class HalvesEverything:
    """An operating system that moves at most half of what it is asked to, rounded to blocks, at least one."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _half(self, view: memoryview) -> memoryview:
        return view[: max(len(view) // 2 // self.block * self.block, min(self.block, len(view)))]

    def pwritev(self, fd: int, views: list[memoryview], offset: int) -> int:
        return os.pwritev(fd, [self._half(views[0])], offset)

    def preadv(self, fd: int, views: list[memoryview], offset: int) -> int:
        return os.preadv(fd, [self._half(views[0])], offset)


def test_transfers_that_do_less_than_asked_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "os", HalvesEverything(4096))
    whole = random.Random(3).randbytes(5 * CHUNK + 77)
    assert written(tmp_path / "file", [(0, whole)], len(whole)) == whole
    reader = FileReader(tmp_path / "file")
    assert b"".join(map(bytes, reader.views(0, len(whole)))) == whole
    reader.close()


class RefusesDirect:
    """A file system whose blocks are larger than it says: direct transfers fail when they are made."""

    def __init__(self) -> None:
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _refuse(self, fd: int) -> None:
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            self.refused += 1
            raise OSError(errno.EINVAL, "not that way")

    def pwritev(self, fd: int, views: list[memoryview], offset: int) -> int:
        self._refuse(fd)
        return os.pwritev(fd, views, offset)

    def preadv(self, fd: int, views: list[memoryview], offset: int) -> int:
        self._refuse(fd)
        return os.preadv(fd, views, offset)


def test_a_disk_that_takes_nothing_directly_is_used_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = RefusesDirect()
    monkeypatch.setattr(files, "os", system)
    whole = random.Random(4).randbytes(5 * CHUNK + 77)
    assert written(tmp_path / "file", [(0, whole)], len(whole)) == whole
    reader = FileReader(tmp_path / "file")
    assert b"".join(map(bytes, reader.views(0, len(whole)))) == whole
    reader.close()


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 * CHUNK))
    reader = FileReader(path)
    os.truncate(path, CHUNK)
    with pytest.raises(OSError, match="ends early"):
        list(reader.views(0, 5 * CHUNK))
    reader.close()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        FileReader(tmp_path / "pipe")
