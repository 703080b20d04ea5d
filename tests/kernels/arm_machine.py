"""An ARM processor in this process that runs the kernels of `csrc/`: zig's clang compiles them, and unicorn, which is
QEMU's processors as a library, emulates it.

    python arm_machine.py

prints how many instructions the update of 16 values takes. Every tensor ends where memory ends, so that a kernel which
reads or writes behind one is stopped.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from unicorn import UC_ARCH_ARM64, UC_HOOK_BLOCK, UC_MODE_ARM, Uc, UcError
from unicorn.arm64_const import (
    UC_ARM64_REG_FPCR,
    UC_ARM64_REG_LR,
    UC_ARM64_REG_PC,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_TPIDR_EL0,
    UC_ARM64_REG_X0,
)

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels import norm
from pagedopt.kernels.args import Operands

CSRC = Path(__file__).parents[2] / "csrc"
TARGETS = ("neon", "scalar")
"""In the order of dispatch.cpp."""

UPDATE, MEASURE, SUM_OF_SQUARES = range(3)
FLUSH_SUBNORMALS, ROUND_TOWARDS_ZERO = 1 << 24, 3 << 22
"""Bits of FPCR, the register of the floating point rules."""

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BARE = "aarch64-linux-musl"
"""A system with the plainest headers; nothing of it is linked."""

_LOAD = 1
"""The kind of program header that says what lies in memory."""

_PAGE = 1 << 12
_STACK, _STACK_NBYTES = 0x2000_0000, 1 << 20
_THREAD, _ORDER, _END = 0x3000_0000, 0x3100_0000, 0x3200_0000
_ROOMS, _ROOM_NBYTES = 0x1_0000_0000, 1 << 22


def compile_object(folder: Path, source: Path, system: str, *flags: str) -> Path:
    """Compile a file for `system` (zig's name of it) as CMakeLists.txt does, with warnings as errors.

    Raises:
        AssertionError: with what the compiler says.
    """
    made = folder / f"{source.stem}.o"
    warnings = ("-Wall", "-Wextra", "-Werror")
    common = ("-std=c++17", "-ffp-contract=off", *warnings, f"-I{CSRC}")
    _compiler(folder, system, *common, *flags, "-c", str(source), "-o", str(made))
    return made


def build(folder: Path, *, neon_flags: tuple[str, ...] = ()) -> Path:
    """Return the program of arm_machine.cpp."""
    common = ("-O3", "-fno-exceptions", "-DPAGEDOPT_ARM")
    names = ("page", "dispatch", "target_scalar")
    sources = [Path(__file__).with_suffix(".cpp"), *(CSRC / f"{name}.cpp" for name in names)]
    objects = [compile_object(folder, source, _BARE, *common) for source in sources]
    objects.append(compile_object(folder, CSRC / "target_neon.cpp", _BARE, *common, *neon_flags))
    image = folder / "image"
    _compiler(folder, _BARE, "-nostdlib", "-static", *map(str, objects), "-o", str(image))
    return image


def _compiler(folder: Path, system: str, *arguments: str) -> None:
    caches = {name: str(folder) for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    command = [sys.executable, "-m", "ziglang", "c++", "-target", system, *arguments]
    child = subprocess.run(command, env={**caches, **os.environ}, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


class ArmMachine:
    """An AArch64 processor and its memory, with a program. It runs one function, with nobody to call.

    Attributes:
        fpcr: the floating point rules before `run`, and after it.
        executed: instructions so far, if it counts.
    """

    def __init__(self, image: Path, *, counts: bool = False) -> None:
        self._processor = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self._entry = self._load(image.read_bytes())
        for address, nbytes in ((_STACK, _STACK_NBYTES), (_THREAD, _PAGE), (_ORDER, _PAGE), (_END, _PAGE)):
            self._processor.mem_map(address, nbytes)
        self._num_rooms = 0
        self.fpcr = 0
        self.executed = 0
        if counts:
            self._processor.hook_add(UC_HOOK_BLOCK, self._count)

    def put(self, room: int, tensor: Tensor) -> int:
        """Copy a tensor to the end of a room, and return its address."""
        nbytes = tensor.nbytes
        assert nbytes <= _ROOM_NBYTES
        while self._num_rooms <= room:  # each with as much behind it that is no memory
            self._processor.mem_map(_ROOMS + 2 * self._num_rooms * _ROOM_NBYTES, _ROOM_NBYTES)
            self._num_rooms += 1
        address = _ROOMS + (2 * room + 1) * _ROOM_NBYTES - nbytes
        self._processor.mem_write(address, ctypes.string_at(tensor.data_ptr(), nbytes))
        return address

    def take(self, address: int, tensor: Tensor) -> None:
        """Copy what `put` has put there back into the tensor."""
        ctypes.memmove(tensor.data_ptr(), bytes(self._processor.mem_read(address, tensor.nbytes)), tensor.nbytes)

    def run(self, order: bytes) -> bytes:
        """Return what has become of the order."""
        processor = self._processor
        processor.mem_write(_THREAD, bytes(_PAGE))
        processor.mem_write(_ORDER, order)
        for register, value in (
            (UC_ARM64_REG_X0, _ORDER),
            (UC_ARM64_REG_LR, _END),
            (UC_ARM64_REG_SP, _STACK + _STACK_NBYTES),
            (UC_ARM64_REG_TPIDR_EL0, _THREAD),
            (UC_ARM64_REG_FPCR, self.fpcr),
        ):
            processor.reg_write(register, value)
        try:
            processor.emu_start(self._entry, _END)
        except UcError as error:
            place = processor.reg_read(UC_ARM64_REG_PC)
            raise RuntimeError(f"the emulated processor stopped at {place:#x}: {error}") from error
        self.fpcr = processor.reg_read(UC_ARM64_REG_FPCR)
        return bytes(processor.mem_read(_ORDER, len(order)))

    def _load(self, image: bytes) -> int:
        """Put an ELF file that is linked to fixed addresses where it says, and return where it begins."""
        entry, headers = struct.unpack_from("<QQ", image, 24)
        nbytes, count = struct.unpack_from("<HH", image, 54)
        for index in range(count):
            kind, _, offset, address, _, in_file, in_memory = struct.unpack_from(
                "<IIQQQQQ", image, headers + index * nbytes
            )
            if kind == _LOAD:
                first, end = address // _PAGE * _PAGE, -(-(address + in_memory) // _PAGE) * _PAGE
                self._processor.mem_map(first, end - first)
                self._processor.mem_write(address, image[offset : offset + in_file])
        return entry

    def _count(self, _processor: Uc, _address: int, nbytes: int, _data: object) -> None:
        self.executed += nbytes // 4


class EmulatedKernel:
    """See `kernels.args.Kernel`: `kernels.native` on another processor."""

    def __init__(self, machine: ArmMachine, target: str) -> None:
        self.name = f"emulated {target}"
        self.machine = machine
        self._target = TARGETS.index(target)

    def update(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        self._call(UPDATE, segments, frame, operands)

    def measure(self, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        self._call(MEASURE, segments, frame, operands)

    def squared_norm(self, grad: Tensor) -> Tensor:
        return norm.squared_norm(grad, self._sum_of_squares)

    def _call(self, verb: int, segments: Tensor, frame: Tensor, operands: Operands) -> None:
        places: list[tuple[int, Tensor]] = []

        def put(tensor: Tensor) -> int:
            places.append((self.machine.put(len(places), tensor), tensor))
            return places[-1][0]

        table = torch.tensor(list(_addresses(operands, put)), dtype=torch.int64)
        page = [put(segments), len(segments), *map(put, (frame, table, operands.scalars, operands.absmax))]
        self.machine.run(struct.pack("<11qd", verb, self._target, *page, 0, 0, 0, 0.0))
        for address, tensor in places:
            self.machine.take(address, tensor)

    def _sum_of_squares(self, run: Tensor) -> Tensor:
        values = [self.machine.put(0, run), _DTYPES[run.dtype], run.numel()]
        order = struct.pack("<11qd", SUM_OF_SQUARES, self._target, *[0] * 6, *values, 0.0)
        return torch.tensor(struct.unpack("<11qd", self.machine.run(order))[-1], dtype=torch.float64)


def _addresses(operands: Operands, put: Callable[[Tensor], int]) -> Iterator[tuple[int, ...]]:
    for param, grad, row in zip(operands.params, operands.grads, operands.scalar_rows, strict=True):
        if grad is None:
            yield put(param), 0, _DTYPES[param.dtype], 0, row
        else:
            yield put(param), put(grad), _DTYPES[param.dtype], _DTYPES[grad.dtype], row


def instructions_for_16_values(image: Path, state_format: StateFormat, dtype: torch.dtype) -> float:
    """Return what whole blocks in the middle of a long row take, loads, stores and loops included."""
    from page_builder import Pages, operands_of, scalars

    executed = []
    for numel in (1 << 12, 1 << 13):
        pages = Pages([(numel,)], [state_format])
        kernel = EmulatedKernel(ArmMachine(image, counts=True), "neon")
        values = torch.linspace(-1, 1, numel).to(dtype)
        kernel.update(pages.tables()[0], pages.frames[0], operands_of([values], [values], [scalars(1)]))
        executed.append(kernel.machine.executed)
    return (executed[1] - executed[0]) / (1 << 12) * 16


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = build(Path(folder))
        for state_format in (StateFormat.FLOAT32, StateFormat.BLOCKWISE8):
            for dtype in (torch.float32, torch.bfloat16):
                count = instructions_for_16_values(image, state_format, dtype)
                print(f"{state_format.name.lower()}, {dtype}: {count:.0f} NEON instructions for 16 values")


if __name__ == "__main__":
    main()
