"""Compile the Triton kernels for a GPU that need not be there, and print the instructions of each as JSON.

    python triton_compiler.py BACKEND ARCH WARP_SIZE [FORMAT...]

With formats: the update of pages of each. Without: the other kernels, and one of them with contraction allowed.
Run in a process of its own: where TRITON_INTERPRET was set, nothing can be compiled.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pagedopt.kernels import triton_norm, triton_page
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
UPDATE = {"PARAM": tl.bfloat16, "GRAD": tl.float32, "PAIR": 3, "BLOCKS": TILE_BLOCKS, "BY_HAND": False}
MEASURE = {"PARAM": tl.bfloat16, "GRAD": tl.float32, "PAIR": 3, "BLOCKS": TILE_BLOCKS}


def compiled(target: GPUTarget, function: Any, types: dict[str, str], constants: dict[str, Any], **options: Any) -> str:
    """Return the assembly of a kernel."""
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    assembly = triton.compile(source, target=target, options={**options_for(target.warp_size), **options}).asm
    return assembly["ptx"] if "ptx" in assembly else assembly["amdgcn"]


def kernels(target: GPUTarget, formats: list[int]) -> dict[str, str]:
    some = {name: POINTERS[name] for name in ("segments", "operands", "absmax", "frame")}
    found = {
        f"update {number}": compiled(target, triton_page.update_page, POINTERS, {"FORMATS": 1 << number, **UPDATE})
        for number in formats
    }
    if not formats:
        chunk = {"values": "*bf16", "sums": "*fp64", "numel": "i64"}
        found["measure"] = compiled(target, triton_page.measure_page, POINTERS, MEASURE)
        found["contracted"] = compiled(target, triton_page.measure_page, POINTERS, MEASURE, enable_fp_fusion=True)
        found["store"] = compiled(target, triton_page.store_absmax, some, {})
        found["chunk"] = compiled(target, triton_norm.sum_chunk, chunk, {"DTYPE": tl.bfloat16})
        found["fold"] = compiled(target, triton_norm.fold_sums, {"sums": "*fp64", "size": "i32"}, {})
    return found


def instructions(assembly: str) -> list[str]:
    """Return the names that occur, such as `mul.rn.f32` or `v_mul_f32_e32`."""
    return sorted(set(re.findall(r"^\s*(?:@!?%?\w+ )?([a-z]\w*(?:[.:]+\w+)*)\s", assembly, re.MULTILINE)))


def main() -> None:
    backend, arch, warp_size, *formats = sys.argv[1:]
    target = GPUTarget(backend, int(arch) if arch.isdecimal() else arch, int(warp_size))
    found = kernels(target, [int(number) for number in formats])
    print(json.dumps({name: instructions(assembly) for name, assembly in found.items()}))


if __name__ == "__main__":
    main()
