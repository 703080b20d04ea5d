"""The NEON kernels give the bits of the reference: an emulated ARM processor runs them, so that no other is needed."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from page_builder import POISON, Pages, Recipe, operands_of, scalars
from same_bits import DTYPES, after_steps, assert_same, assert_same_but_kinds_of_nan, gradients, with_value

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels.reference import ReferenceKernel

for package in ("unicorn", "ziglang"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; `make neon` has it", allow_module_level=True)

from arm_machine import (  # noqa: E402
    CSRC,
    FLUSH_SUBNORMALS,
    ROUND_TOWARDS_ZERO,
    TARGETS,
    ArmMachine,
    EmulatedKernel,
    build,
    compile_object,
    instructions_for_16_values,
)

F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat
_AVX512 = "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl"
FLAGS = {
    "-DPAGEDOPT_ARM": {"target_neon": ""},
    "-DPAGEDOPT_X86 -DPAGEDOPT_BF16": {
        "target_avx2": "-mavx2 -mfma -mf16c",
        "target_avx512": _AVX512,
        "target_avx512_bf16": f"{_AVX512} -mavx512bf16",
    },
    "-DPAGEDOPT_PORTABLE": {},
}
"""What is compiled for a kind of processor beside what all share, as CMakeLists.txt does."""
ARM, X86, PORTABLE = FLAGS

pytestmark = pytest.mark.xdist_group("neon")  # who has the compiler too, and runs all tests, compiles once

every_target = pytest.mark.parametrize("target", TARGETS)
every_format = pytest.mark.parametrize("state_format", list(StateFormat), ids=lambda f: f.name.lower())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("arm"))


@pytest.fixture(scope="module")
def machine(image: Path) -> ArmMachine:
    return ArmMachine(image)


@every_target
@every_format
@pytest.mark.parametrize(("param_dtype", "grad_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_arm_gives_the_bits_of_the_reference(machine, target, state_format, param_dtype, grad_dtype):
    grads = [gradients(seed, grad_dtype) for seed in (1, 2, 3)]
    ours = after_steps(EmulatedKernel(machine, target), state_format, param_dtype, grads)
    assert_same(ours, after_steps(ReferenceKernel(), state_format, param_dtype, grads))
    assert all((free == POISON).all() for free in ours.pages.free_bytes())


@every_format
@every_dtype
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-22, 1e-6, 1e18, 1e30])
def test_gradients_that_underflow_and_overflow_give_the_bits_of_the_reference(machine, state_format, dtype, scale):
    grads = [gradients(1, dtype, scale), gradients(2, dtype)]
    ours = after_steps(EmulatedKernel(machine, "neon"), state_format, dtype, grads)
    assert_same_but_kinds_of_nan(ours, after_steps(ReferenceKernel(), state_format, dtype, grads))


@every_format
@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
def test_single_odd_values_give_the_bits_of_the_reference(machine, state_format, dtype, value):
    grads = [with_value(gradients(1, dtype), value), gradients(2, dtype)]
    ours = after_steps(EmulatedKernel(machine, "neon"), state_format, dtype, grads)
    assert_same_but_kinds_of_nan(ours, after_steps(ReferenceKernel(), state_format, dtype, grads))


@every_target
@every_format
def test_a_scaled_gradient_gives_the_bits_of_the_reference(machine, target, state_format):
    recipe = Recipe(lr=0.3, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, grad_scale=0.37)
    grads = [gradients(seed, torch.bfloat16) for seed in (1, 2, 3)]
    ours = after_steps(EmulatedKernel(machine, target), state_format, torch.float32, grads, recipe)
    assert_same(ours, after_steps(ReferenceKernel(), state_format, torch.float32, grads, recipe))


@every_target
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits_is_read_and_written_as_the_reference_does(machine, target, dtype):
    numbers = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    outcomes = []
    for kernel in (EmulatedKernel(machine, target), ReferenceKernel()):
        pages, param = Pages([numbers.shape], [F32], capacity=1 << 20), numbers.clone()
        pages.update(kernel, operands_of([param], [numbers], [scalars(1, Recipe(lr=0.1))]))
        outcomes.append((param, pages.state(0)["exp_avg"]))
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


@every_target
@pytest.mark.parametrize("absmax", [2.0**-100, 1e-20, 0.37, 1.0, 1e19])
def test_every_code_is_read_as_the_reference_does(machine, target, absmax):
    """With a gradient of zero, so that the codes decide; every pair of codes of the two moments."""
    outcomes = []
    for kernel in (EmulatedKernel(machine, target), ReferenceKernel()):
        pages, param = Pages([(1 << 16,)], [BLOCKWISE], capacity=1 << 20), torch.zeros(1 << 16)
        codes = torch.arange(1 << 16)
        pages.fill(0, "exp_avg", lambda array, codes=codes: array.copy_((codes % 256).to(torch.uint8).view(torch.int8)))
        pages.fill(0, "root_exp_avg_sq", lambda array, codes=codes: array.copy_((codes // 256).to(torch.uint8)))
        for name in ("exp_avg_absmax", "root_exp_avg_sq_absmax"):
            pages.fill(0, name, lambda array: array.fill_(absmax))
        pages.update(kernel, operands_of([param], [torch.zeros(1 << 16)], [scalars(1)]))
        outcomes.append((param, *pages.state(0).values()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outcomes, strict=True))


@every_target
@every_dtype
def test_the_norm_of_a_gradient_is_the_references_to_the_bit(machine, target, dtype):
    grad = torch.randn(3, 40_001, generator=torch.Generator().manual_seed(5)).to(dtype)
    for shape in (grad, grad.t(), grad[:, ::2], grad[0, :1]):
        assert torch.equal(EmulatedKernel(machine, target).squared_norm(shape), ReferenceKernel().squared_norm(shape))


@every_target
@every_format
def test_what_a_thread_was_told_of_rounding_never_changes_a_bit(image, target, state_format):
    """It is told so again in the end."""
    grads = [gradients(seed, torch.float32, 1e-38) for seed in (1, 2)]
    machine = ArmMachine(image)
    machine.fpcr = FLUSH_SUBNORMALS | ROUND_TOWARDS_ZERO
    ours = after_steps(EmulatedKernel(machine, target), state_format, torch.float32, grads)
    assert_same(ours, after_steps(ReferenceKernel(), state_format, torch.float32, grads))
    assert machine.fpcr == FLUSH_SUBNORMALS | ROUND_TOWARDS_ZERO


def test_one_rounding_less_is_noticed(tmp_path):
    """The checks above can fail: here the compiler may contract."""
    image = build(tmp_path, neon_flags=("-O1", "-ffp-contract=fast"))
    contracted = EmulatedKernel(ArmMachine(image), "neon")
    grads = [gradients(seed, torch.float32) for seed in (1, 2, 3)]
    for state_format in StateFormat:
        ours = after_steps(contracted, state_format, torch.float32, grads)
        with pytest.raises(AssertionError):
            assert_same(ours, after_steps(ReferenceKernel(), state_format, torch.float32, grads))


def test_a_kernel_that_reads_behind_a_tensor_is_stopped(machine):
    grad = torch.randn(100)
    short = operands_of([torch.zeros(100)], [grad[:99]], [scalars(1)])
    pages = Pages([(100,)], [F32])
    with pytest.raises(RuntimeError, match=r"the emulated processor stopped at 0x.*READ_UNMAPPED"):
        pages.update(EmulatedKernel(machine, "neon"), short)


def test_an_update_takes_no_more_instructions_than_it_did(image):
    """What ARCHITECTURE.md says, and a tenth: other compilers of the same kind come near."""
    counted = {F32: 120, BLOCKWISE: 600}
    for state_format, expected in counted.items():
        assert instructions_for_16_values(image, state_format, torch.float32) <= 1.1 * expected


@pytest.mark.parametrize(
    ("system", "processor"),
    [("aarch64-macos", ARM), ("x86_64-macos", X86), ("x86_64-windows-gnu", X86), ("riscv64-linux-gnu", PORTABLE)],
    ids=lambda value: value.removeprefix("-DPAGEDOPT_").split()[0],
)
def test_the_kernels_compile_without_a_warning_for_other_machines(tmp_path, system, processor):
    files = {**dict.fromkeys(("page", "pool", "dispatch", "target_scalar"), ""), **FLAGS[processor]}
    for name, flags in files.items():
        compile_object(tmp_path, CSRC / f"{name}.cpp", system, "-O0", *processor.split(), *flags.split())
