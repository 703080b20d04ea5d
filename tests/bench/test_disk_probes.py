"""The probes move what they say they move."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.disk import RawFile, Requests, disk_probes, raw_file

REQUESTS = Requests(nbytes=8 << 16, request_nbytes=1 << 16, depth=3)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every request, in the order in which it ended: kind, offset, bytes."""
    seen: list[tuple[str, int, int]] = []

    def watched(kind: str, call):  # type: ignore[no-untyped-def]
        def move(fd: int, buffers: list[memoryview], offset: int) -> int:
            done: int = call(fd, buffers, offset)
            seen.append((kind, offset, done))
            return done

        return move

    monkeypatch.setattr(os, "preadv", watched("read", os.preadv))
    monkeypatch.setattr(os, "pwritev", watched("write", os.pwritev))
    return seen


@pytest.mark.parametrize("direct", [True, False])
def test_every_probe_moves_the_whole_file_in_requests(
    tmp_path: Path, moved: list[tuple[str, int, int]], direct: bool
) -> None:
    whole = [(offset, 1 << 16) for offset in REQUESTS.offsets()]
    with raw_file(tmp_path, REQUESTS, direct=direct) as file:
        probes = {probe.name: probe.prepare() for probe in disk_probes(file, file, REQUESTS)}
        for name, kinds in (("read and write", ("read", "write")), ("read", ("read",)), ("write", ("write",))):
            moved.clear()
            ready = probes[f"disk {name}"]
            ready.step()
            for kind in kinds:
                assert sorted((offset, nbytes) for k, offset, nbytes in moved if k == kind) == whole
            assert ready.nbytes == len(moved) << 16


def test_a_file_is_nameless_and_gone_when_closed(tmp_path: Path) -> None:
    with raw_file(tmp_path, REQUESTS, direct=False):
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_moves_less_than_asked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_file(tmp_path, REQUESTS, direct=False) as file:
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: 100)
        with pytest.raises(OSError, match="moved 100 of 65536 bytes at"):
            file.read()


def test_a_folder_that_only_goes_through_the_cache_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse_direct(path: str, flags: int, *arguments: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError("this file system has no such thing")
        return real(path, flags, *arguments)

    monkeypatch.setattr(os, "open", refuse_direct)
    file = RawFile(tmp_path, REQUESTS, direct=True)
    try:
        assert not file.is_direct
        assert "cannot be bypassed" in disk_probes(file, file, REQUESTS)[0].runs
    finally:
        file.close()
