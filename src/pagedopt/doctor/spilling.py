"""The folder of the spill file: whether it is a disk at all, how it can be moved, and what room it has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pagedopt.doctor.check import Check
from pagedopt.errors import SpillError
from pagedopt.tiers.spill_file import SpillFile
from pagedopt.units import format_bytes

IN_RAM = ("tmpfs", "ramfs", "devtmpfs")
OVER_A_NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "sshfs",
    "fuse.sshfs",
)

LITTLE_ROOM = 16 << 30
"""Bytes: the 8-bit state of eight billion values."""


def folder(path: Path) -> Iterator[Check]:
    """Yield its file system, how a spill file in it is moved, and its free room."""
    try:
        file = SpillFile(path)
    except SpillError as error:
        cost = "state that does not fit into the budget has nowhere to go, so a step fails"
        yield Check(
            "spill folder",
            "broken",
            error.strerror or str(error),
            cost,
            "set spill_dir to a folder on a disk that can be written",
        )
        return
    try:
        yield _file_system(path)
        yield _direct(file)
        yield _name(file)
    finally:
        file.close()
    yield _room(path)


def _file_system(path: Path) -> Check:
    kind = file_system_of(path)
    value = f"{path} ({kind})"
    elsewhere = "set spill_dir to a folder on a disk of this machine, such as /var/tmp"
    if kind in IN_RAM:
        cost = "this is RAM: pages spilled here take memory beyond max_host_memory, and nothing is saved"
        return Check("spill folder", "missing", value, cost, elsewhere)
    if kind in OVER_A_NETWORK:
        cost = "pages go over the network in every step"
        return Check("spill folder", "missing", value, cost, elsewhere)
    return Check("spill folder", "ok", value)


def file_system_of(path: Path) -> str:
    """Return the kind of file system that `path` is on, `"unknown"` where the system does not tell."""
    import psutil

    real = path.resolve()
    best, kind = -1, "unknown"
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        if (point == real or point in real.parents) and len(point.parts) >= best:  # of two on one point the later hides
            best, kind = len(point.parts), mount.fstype
    return kind or "unknown"


def _direct(file: SpillFile) -> Check:
    if file.is_direct:
        return Check("direct I/O", "ok", "pages go past the page cache")
    cost = "the page cache keeps a copy of what is spilled, in RAM beyond max_host_memory"
    return Check(
        "direct I/O", "missing", "not on this file system", cost, "set spill_dir to ext4, xfs or btrfs on a disk"
    )


def _name(file: SpillFile) -> Check:
    if file.is_nameless:
        return Check("nameless file", "ok", "a killed process leaves nothing behind")
    cost = "a killed process leaves its spill file behind"
    return Check("nameless file", "missing", "not on this system", cost, "remove pagedopt-*.spill after a crash")


def _room(path: Path) -> Check:
    free = shutil.disk_usage(path).free
    value = f"{format_bytes(free)} free"
    if free >= LITTLE_ROOM:
        return Check("spill room", "ok", value)
    cost = "state beyond it and the budgets has nowhere to go; 8-bit state takes 2 bytes a value, 32-bit state 8"
    return Check("spill room", "missing", value, cost, "free some, or set spill_dir to a larger disk")
