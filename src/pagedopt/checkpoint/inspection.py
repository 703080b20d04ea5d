"""`inspect`: what is in a checkpoint, how large it is, how it is kept, and what is damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from pagedopt.checkpoint import manifest as manifests
from pagedopt.checkpoint.archive import Archive, is_archive, open_archive
from pagedopt.checkpoint.convert import open_source
from pagedopt.checkpoint.layout import nbytes_of
from pagedopt.checkpoint.progress import progress
from pagedopt.checkpoint.reading import open_checkpoint, read_manifest
from pagedopt.errors import CheckpointError
from pagedopt.units import format_bytes


@dataclass(frozen=True, slots=True)
class KeptAs:
    """The parameters that are kept in one way."""

    format: str
    params: int
    values: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        kind: `pagedopt checkpoint` or `state dict of torch.save`.
        written_by, codec: of a pagedopt checkpoint, else None.
        steps: the least and the largest step of a parameter, None without parameters.
        groups: for each group its hyperparameters, as text, and how many parameters it has.
        kept: by format.
        files: names and bytes.
        has_checksums: whether there is anything to compare; files of torch's can be without.
        is_verified: whether every checksum was compared.
        damage: what is wrong, one line each; empty: nothing was found.
    """

    path: str
    kind: str
    written_by: str | None
    codec: str | None
    params: int
    steps: tuple[float, float] | None
    groups: list[dict[str, str]]
    kept: list[KeptAs]
    files: dict[str, int]
    has_checksums: bool
    is_verified: bool
    damage: list[str]


def inspect(path: Path, *, verify: bool = True, show_progress: bool | None = None) -> Inspection:
    """Return what is in the checkpoint folder or the state-dict file `path`.

    Args:
        path: a folder that `save` wrote, or a file of `torch.save`.
        verify: read everything and compare every checksum; without it, only sizes and headers are compared.
        show_progress: as for `save`.

    Raises:
        CheckpointError: there is nothing there that can be told about.
    """
    return _folder(path, verify, show_progress) if path.is_dir() else _file(path, verify, show_progress)


def _folder(path: Path, verify: bool, show_progress: bool | None) -> Inspection:
    manifest = read_manifest(path)
    damage = list(_damage(path, show_progress) if verify else _misfits(path))
    sizes = {name: (path / name).stat().st_size if (path / name).is_file() else 0 for name in manifest.files}
    steps = [param.step for param in manifest.params]
    return Inspection(
        path=str(path),
        kind="pagedopt checkpoint",
        written_by=manifest.written_by,
        codec=manifest.codec,
        params=len(manifest.params),
        steps=(min(steps), max(steps)) if steps else None,
        groups=_described(manifest.groups),
        kept=_by_format(
            [(param.state_format.name.lower(), param.shape, nbytes_of(param)) for param in manifest.params]
        ),
        files={manifests.NAME: (path / manifests.NAME).stat().st_size, **sizes},
        has_checksums=True,
        is_verified=verify,
        damage=damage,
    )


def _misfits(path: Path) -> Iterator[str]:
    try:
        with open_checkpoint(path):
            return
    except CheckpointError as error:
        yield str(error)


def _damage(path: Path, show_progress: bool | None) -> Iterator[str]:
    """Yield what is wrong; a tensor that is damaged does not hide the next."""
    try:
        with (
            open_checkpoint(path) as checkpoint,
            progress(f"reading {path}", checkpoint.nbytes, is_shown=show_progress) as advance,
        ):
            yield from checkpoint.damage(advance)
    except CheckpointError as error:
        yield str(error)


def _file(path: Path, verify: bool, show_progress: bool | None) -> Inspection:
    with _archive(path) as archive:
        damage = _damage_of_file(path, archive, show_progress) if archive and verify else []
    try:
        with open_source(path, unchecked=True) as source:
            entries = list(source.entries.values())
    except CheckpointError as error:
        if not damage:
            raise
        raise CheckpointError(damage[0]) from error  # why it cannot be read
    steps = [entry.step for _, entry in entries]
    return Inspection(
        path=str(path),
        kind="state dict of torch.save",
        written_by=None,
        codec=None,
        params=len(entries),
        steps=(min(steps), max(steps)) if steps else None,
        groups=_described(source.groups),
        kept=_by_format([(entry.source, shape, 0) for shape, entry in entries]),
        files={path.name: path.stat().st_size},
        has_checksums=archive is not None,
        is_verified=archive is not None and verify,
        damage=damage,
    )


@contextmanager
def _archive(path: Path) -> Iterator[Archive | None]:
    """Open what has checksums to compare, if the file has."""
    if not path.exists() or not is_archive(path):
        yield None
        return
    with open_archive(path) as archive:
        yield archive if archive.has_checksums else None


def _damage_of_file(path: Path, archive: Archive, show_progress: bool | None) -> list[str]:
    with progress(f"reading {path}", archive.nbytes, is_shown=show_progress) as advance:
        return list(archive.damage(advance))


def _described(groups: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            **{str(k): str(v) for k, v in group.items() if k not in ("params", "param_names")},
            "params": str(len(group["params"])),
        }
        for group in groups
    ]


def _by_format(params: list[tuple[str, tuple[int, ...], int]]) -> list[KeptAs]:
    kept: dict[str, KeptAs] = {}
    for name, shape, nbytes in params:
        before = kept.get(name, KeptAs(name, 0, 0, 0))
        kept[name] = KeptAs(name, before.params + 1, before.values + math.prod(shape), before.nbytes + nbytes)
    return list(kept.values())


def as_json(found: Inspection) -> str:
    """Return an inspection as JSON, for programs."""
    return json.dumps(asdict(found), indent=2)


def as_tables(found: Inspection) -> Group:
    """Return an inspection as text for people."""
    about = Table(Column(overflow="fold"), Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("path", found.path),
        ("kind", found.kind),
        ("written by", found.written_by),
        ("8-bit codec", found.codec),
        ("parameters", str(found.params)),
        ("steps", None if found.steps is None else _range(*found.steps)),
        ("size", format_bytes(sum(found.files.values()))),
        ("files", str(len(found.files))),
    ):
        if value is not None:
            about.add_row(name, value)
    heads = ("kept as", "parameters", "values", "size")
    kept = Table(*(Column(head, overflow="fold") for head in heads), box=None, pad_edge=False)
    for way in found.kept:
        kept.add_row(way.format, str(way.params), f"{way.values:,}", format_bytes(way.nbytes) if way.nbytes else "")
    groups = [
        f"group {index}: {', '.join(f'{key}={value}' for key, value in group.items())}"
        for index, group in enumerate(found.groups)
    ]
    return Group(about, "", kept, "", *map(_unbroken, groups), "", *map(_unbroken, _verdict(found)))


def _unbroken(line: str) -> Text:
    """Return a line that is one whatever the width: paths are copied from it, and programs look for words in it."""
    return Text(line, no_wrap=True, overflow="ignore")


def _range(first: float, last: float) -> str:
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"


def _verdict(found: Inspection) -> list[str]:
    if found.damage:
        return [f"DAMAGED: {line}" for line in found.damage]
    if found.is_verified:
        return ["whole: every checksum was compared"]
    return ["sizes and headers fit; checksums were not compared" if found.has_checksums else "no checksums to compare"]
