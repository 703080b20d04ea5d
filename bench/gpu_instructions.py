"""`python -m bench.gpu_instructions`: what the Triton kernels take of an NVIDIA GPU, counted without one.

    kernel -> compiled for the GPU -> its instructions -> those that a whole tile of ordinary numbers passes through

Ordinary: no zeros, no infinities, nothing that a division or a root has to handle with care. The way through a kernel
(`bench.listing`) is the shortest one that stores a tile with wide stores; what lies in a loop on it counts once a part
of the tile.

From the counts follows how long each pipe of a multiprocessor is busy with 32 values. `share` is the time that memory
needs over that of the busiest pipe: an upper bound of the share of the bandwidth, counted and not measured.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.listing import in_loops, ordinary_way, parse, successors
from pagedopt.codecs.base import StateFormat
from pagedopt.kernels import triton_page
from pagedopt.kernels.triton_adamw import options_for
from pagedopt.kernels.triton_tables import TILE_BLOCKS

POINTERS = {
    "tiles": "*i32",
    "segments": "*i64",
    "operands": "*i64",
    "scalars": "*fp32",
    "codec": "*u8",
    "absmax": "*fp32",
    "frame": "*u8",
}

F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat
INSTANCES = (
    ("8-bit block-wise", BLOCKWISE, "bfloat16", "bfloat16"),
    ("8-bit block-wise", BLOCKWISE, "bfloat16", "float32"),
    ("8-bit block-wise", BLOCKWISE, "float16", "float16"),
    ("8-bit block-wise", BLOCKWISE, "float32", "float32"),
    ("8-bit tensor-wise", TENSORWISE, "bfloat16", "bfloat16"),
    ("32-bit", F32, "bfloat16", "bfloat16"),
    ("32-bit", F32, "float32", "float32"),
    ("32-bit amsgrad", AMSGRAD, "float32", "float32"),
)
_NBYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_STATE_NBYTES = {F32: 8, AMSGRAD: 12, BLOCKWISE: 2, TENSORWISE: 2}

GATHER_CONFLICTS = 3.0
"""How many of 32 look-ups meet in the busiest of 32 banks of shared memory: the most that moments were seen to have
(the test of this module makes some, whose sizes vary by a factor of e; normal ones have 2.6).
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A multiprocessor's share of a GPU: its memory bandwidth in bytes a clock, and what it holds."""

    name: str
    bytes_per_clock: float
    registers: int = 65536
    max_threads: int = 2048


GPUS = {
    80: Gpu("A100, 1.56 TB/s, 108 multiprocessors at 1.41 GHz", 1.555e12 / 108 / 1.41e9),
    89: Gpu("RTX 4090, 1.01 TB/s, 128 multiprocessors at 2.52 GHz", 1.008e12 / 128 / 2.52e9, max_threads=1536),
    90: Gpu("H100, 3.35 TB/s, 132 multiprocessors at 1.7 GHz", 3.35e12 / 132 / 1.7e9),
}


@dataclass(frozen=True, slots=True)
class Count:
    """What one kernel takes.

    Attributes:
        registers: of a thread.
        spills: instructions that move registers to memory and back, on the way of an ordinary tile.
        shared_nbytes: shared memory of a program.
        threads: that a multiprocessor holds at a time.
        instructions: on the way of an ordinary tile, a value.
        loads, stores: of global memory, by the bytes that a thread moves at once.
        clocks: that 32 values take of each pipe of a multiprocessor.
        memory_clocks: that the bytes of 32 values take at the GPU's bandwidth.
    """

    registers: int
    spills: int
    shared_nbytes: int
    threads: int
    instructions: float
    loads: dict[int, int]
    stores: dict[int, int]
    clocks: dict[str, float]
    memory_clocks: float

    @property
    def share(self) -> float:
        return min(1.0, self.memory_clocks / max(self.clocks.values()))


# --- pipes ----------------------------------------------------------------------------------------------------------

_LANES = {"issue": 128, "alu": 64, "fma": 128, "special": 16, "memory": 32}
"""Values that each pipe of a multiprocessor takes in a clock; `memory` is shared and global memory and shuffles."""

_FMA = ("FMUL", "FFMA", "FADD", "HADD2", "HFMA2", "HMUL2", "IMAD")
_SPECIAL = ("MUFU", "F2I", "I2F", "FCHK", "REDUX")
_MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "SHFL", "ATOM", "RED.")
_CONTROL = ("BRA", "BRX", "BSSY", "BSYNC", "BAR", "EXIT", "CALL", "RET", "NOP", "WARPSYNC", "LDC", "S2R", "S2UR")


def width(name: str) -> int:
    """Return the bytes that a load or store moves for each thread."""
    found = re.search(r"\.(U8|S8|U16|S16|64|128)\b", name)
    return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[found[1]] if found else 4


def pipe_of(name: str) -> str:
    if name.startswith(_MEMORY):
        return "memory"
    if name.startswith(_SPECIAL):
        return "special"
    if name.startswith(_FMA):
        return "fma"
    if name.startswith(_CONTROL) or name.startswith("U"):
        return "control"
    return "alu"


def pipe_clocks(times: dict[str, float], *, has_tables: bool) -> dict[str, float]:
    """Return the clocks of each pipe for 32 threads that pass each named instruction so many times."""
    clocks = dict.fromkeys(_LANES, 0.0)
    for name, count in times.items():
        pipe = pipe_of(name)
        clocks["issue"] += count * 32 / _LANES["issue"]
        if pipe == "memory":
            wavefronts = max(1.0, width(name) / 4)
            if name == "LDS" and has_tables:
                wavefronts = GATHER_CONFLICTS
            clocks[pipe] += count * wavefronts * 32 / _LANES["memory"]
        elif pipe != "control":
            clocks[pipe] += count * 32 / _LANES[pipe]
    return clocks


# --- kernels --------------------------------------------------------------------------------------------------------


def compile_update(arch: int, state_format: StateFormat, param: str, grad: str) -> Any:
    """Return `update_page` for a page of one format, compiled for `sm_<arch>`."""
    constants = {
        "FORMATS": 1 << state_format,
        "PARAM": getattr(tl, param),
        "GRAD": getattr(tl, grad),
        "PAIR": 0,
        "BLOCKS": TILE_BLOCKS,
        "BY_HAND": False,
    }
    signature = {**POINTERS, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=triton_page.update_page, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options_for(32))


def _tool(name: str, *arguments: str) -> str:
    tool = Path(triton.backends.__file__).parent / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout  # noqa: S603 - Triton's own


def count(arch: int, state_format: StateFormat, param: str, grad: str) -> Count:
    """Compile one kernel and count what it takes."""
    kernel = compile_update(arch, state_format, param, grad)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        listing, usage = _tool("nvdisasm", "-c", str(path)), _tool("cuobjdump", "-res-usage", str(path))
    found = re.search(r"Function update_page:\s+REG:(\d+)", usage)
    assert found is not None, usage
    nbytes_of_value = 2 * _NBYTES[param] + _NBYTES[grad] + 2 * _STATE_NBYTES[state_format]
    return count_listing(listing, GPUS[arch], int(found[1]), kernel.metadata.shared, state_format, nbytes_of_value)


def count_listing(
    listing: str, gpu: Gpu, registers: int, shared_nbytes: int, state_format: StateFormat, nbytes_of_value: int
) -> Count:
    """Count what a listing takes of a GPU."""
    instructions, labels = parse(listing)
    edges = successors(instructions, labels)
    widest = max(width(i.name) for i in instructions if i.name.startswith("STG"))
    is_wide = re.compile(rf"STG\.\S*\.{widest * 8}\b").search
    way = ordinary_way(instructions, edges, lambda text: is_wide(text) is not None)
    repeated = in_loops(way, edges, instructions)

    num_threads = options_for(32)["num_warps"] * 32
    values = TILE_BLOCKS * 256 / num_threads
    times: dict[str, float] = {}
    for index in way:
        name = instructions[index].name
        times[name] = times.get(name, 0) + (TILE_BLOCKS // 4 if index in repeated else 1)
    clocks = pipe_clocks(times, has_tables=state_format in (BLOCKWISE, TENSORWISE))
    threads = min(gpu.registers // (-(-registers // 8) * 8 * num_threads) * num_threads, gpu.max_threads)
    return Count(
        registers,
        sum(int(number) for name, number in times.items() if name.startswith(("LDL", "STL"))),
        shared_nbytes,
        threads,
        sum(times.values()) / values,
        _by_width(times, "LDG"),
        _by_width(times, "STG"),
        {pipe: each / values for pipe, each in clocks.items()},
        nbytes_of_value * 32 / gpu.bytes_per_clock,
    )


def _by_width(times: dict[str, float], kind: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for name, number in times.items():
        if name.startswith(kind):
            found[width(name)] = found.get(width(name), 0) + int(number)
    return dict(sorted(found.items()))


def chosen(only: str) -> list[tuple[str, StateFormat, str, str]]:
    """Return the kernels whose title begins with `only`."""
    return [instance for instance in INSTANCES if title(*instance).startswith(only)]


def title(name: str, _: StateFormat, param: str, grad: str) -> str:
    return f"{name}, {param}, {grad}"


def table(arch: int, only: str) -> str:
    """Return the counts of the chosen kernels for `sm_<arch>` in Markdown."""
    head = "| state, parameter, gradient | registers | threads | instructions a value | busiest pipe | share |"
    rows = [head, "|---|---|---|---|---|---|"]
    for instance in chosen(only):
        found = count(arch, *instance[1:])
        busiest = max(found.clocks, key=lambda pipe: found.clocks[pipe])
        rows.append(
            f"| {title(*instance)} | {found.registers} | {found.threads} | {found.instructions:.0f} "
            f"| {busiest}, {found.clocks[busiest]:.1f} of {found.memory_clocks:.1f} clocks | {found.share:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, choices=GPUS, default=90, help="sm_80, sm_89 or sm_90")
    parser.add_argument("--only", default="", metavar="TITLE", help="kernels whose title begins so")
    parser.add_argument("--json", action="store_true", help="everything that was counted")
    given = parser.parse_args()
    if given.json:
        counts = {title(*instance): asdict(count(given.arch, *instance[1:])) for instance in chosen(given.only)}
        print(json.dumps(counts))
    else:
        print(f"{GPUS[given.arch].name}, Triton {triton.__version__}\n\n{table(given.arch, given.only)}")


if __name__ == "__main__":
    main()
