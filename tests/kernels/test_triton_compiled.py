"""What the Triton kernels become on a GPU, seen without one: the interpreter runs what may not compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pagedopt.codecs.base import StateFormat

triton = pytest.importorskip("triton", reason="Triton is not installed")

F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat
CHILD = Path(__file__).with_name("triton_compiler.py")
HOPPER, MI300, RX7900 = ("cuda", "90", "32"), ("hip", "gfx942", "64"), ("hip", "gfx1100", "32")

Compile = Callable[..., dict[str, set[str]]]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Compile in a child that does not interpret, with a cache of its own, and return each kernel's instructions."""

    def run(target: tuple[str, ...], *formats: StateFormat) -> dict[str, set[str]]:
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, str(CHILD), *target, *(str(int(number)) for number in formats)]
        child = subprocess.run(
            command, env={**env, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert child.returncode == 0, child.stderr[-2000:]
        return {name: set(found) for name, found in json.loads(child.stdout).items()}

    return run


def unrounded(instructions: set[str]) -> list[str]:
    """Return those that round less than once an operation, or not to nearest."""
    return sorted(name for name in instructions if {"fma", "approx", "full", "rz", "rm", "rp"} & set(name.split(".")))


@pytest.mark.parametrize("state_format", list(StateFormat), ids=lambda state_format: state_format.name)
def test_the_update_of_every_format_compiles_and_rounds_each_operation(compiled, state_format):
    (found,) = compiled(HOPPER, state_format).values()
    assert unrounded(found) == []
    assert {"div", "sqrt"} <= {name.split(".")[0] for name in found}
    assert any(name.startswith("cvt.rn.bf16") for name in found)
    assert "ld.global.v4.b32" in found, "gradients are not read four at a time"
    keeps_nan = {F32: set(), AMSGRAD: {"max.NaN.f32"}}.get(state_format, {"max.NaN.f32", "min.NaN.f32"})
    assert {name for name in found if "NaN" in name} == keeps_nan
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6):
        assert not any("ftz" in name for name in found)


def test_the_other_kernels_compile_and_round_each_operation(compiled):
    found = compiled(HOPPER)
    assert unrounded(found.pop("contracted")) == ["fma.rn.f32"], "the check cannot fail"
    assert set(found) == {"measure", "store", "chunk", "fold"}
    assert [name for name, instructions in found.items() if unrounded(instructions)] == []


def test_the_kernels_compile_for_amd_without_contraction(compiled):
    """Scalar fused operations occur there inside division and root."""
    found = compiled(MI300)
    assert "v_pk_fma_f32" in found.pop("contracted"), "the check cannot fail"
    (update,) = compiled(MI300, BLOCKWISE).values()
    assert not any("v_pk_fma" in name for name in update.union(*found.values()))


@pytest.mark.parametrize("target", [MI300, RX7900], ids=["gfx942", "gfx1100"])
def test_division_and_root_are_rounded_once_on_amd(compiled, target):
    """The hardware's own are off by an ulp; what follows them mends that."""
    (update,) = compiled(target, F32).values()
    assert "v_div_fixup_f32" in update
    assert "v_sqrt_f32_e32" in update
    assert {"v_cmp_class_f32_e32", "v_cmp_class_f32_e64"} & update, "a root without what mends it"
    assert not any(name.startswith("v_rsq") for name in update)
