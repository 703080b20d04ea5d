"""What this machine is, what is installed, and how fast its memory is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import pagedopt
from bench.measure import EXACT, Candidate, Ready

PEERS = ("torch", "triton", "bitsandbytes", "torchao", "flashoptim")

_ISA = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16")
_ARM_ISA = ("asimd", "asimdhp", "bf16", "sve", "sve2")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a row must be read with.

    Attributes:
        name: of the results file.
        cores: that this process may use; threads: that it does use.
        isa: the instruction sets that matter here.
        ram_nbytes: of the whole machine.
        accelerator: its name, or nothing.
    """

    name: str
    cpu: str
    cores: int
    threads: int
    isa: tuple[str, ...]
    ram_nbytes: int
    system: str
    python: str
    accelerator: str = ""


def this_machine(accelerator: str = "") -> Machine:
    """Return what this machine is; with an accelerator, results are named after that."""
    cpu, flags = _cpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        name=_slug(accelerator) if accelerator else f"{_slug(cpu)}-{cores}-cores",
        cpu=cpu,
        cores=cores,
        threads=torch.get_num_threads(),
        isa=tuple(flag for flag in (*_ISA, *_ARM_ISA) if flag in flags),
        ram_nbytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
        accelerator=accelerator,
    )


def _cpu() -> tuple[str, frozenset[str]]:
    """Return the processor's model and its flags, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    model = found.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in found and "model" in found:
        model += f" (family {found['cpu family']} model {found['model']})"
    return model, frozenset((found.get("flags") or found.get("Features") or "").split())


def _slug(text: str) -> str:
    plain = re.sub(r"\((r|tm|c)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def versions() -> dict[str, str]:
    """Return the version of pagedopt and of each peer that is installed."""
    found = {"pagedopt": pagedopt.__version__}
    for package in PEERS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str:
    """Return the commit that runs, with `+` after it if tracked files differ from it; `unknown` outside a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "csrc", "bench", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = Path(__file__).parent.parent
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def memory_probes(device: torch.device, numel: int) -> list[Candidate]:
    """Return candidates that do nothing but move `numel` float32 values: the ceilings of a step on `device`."""
    return [copy_probe(device, numel), scale_probe(device, numel), memory_probe(device, numel)]


def copy_probe(device: torch.device, numel: int) -> Candidate:
    """A copy: one read, one write (and on most CPUs a hidden read of what is overwritten, which is not counted)."""

    def prepare() -> Ready:
        source, target = torch.ones(numel, device=device), torch.zeros(numel, device=device)
        return Ready(lambda: target.copy_(source), EXACT, 8.0 * numel)

    return Candidate("memory copy", prepare)


def scale_probe(device: torch.device, numel: int) -> Candidate:
    """One read and one write of the same memory."""

    def prepare() -> Ready:
        values = torch.ones(numel, device=device)
        return Ready(lambda: values.neg_(), EXACT, 8.0 * numel)

    return Candidate("memory in place", prepare)


def memory_probe(device: torch.device, numel: int) -> Candidate:
    """Two reads, and one write to where was read: as near to an optimizer's step as a bare sum comes."""

    def prepare() -> Ready:
        total, term = torch.ones(numel, device=device), torch.zeros(numel, device=device)
        return Ready(lambda: total.add_(term), EXACT, 12.0 * numel)

    return Candidate("memory sum", prepare)
