"""The Triton kernels against the reference, to the bit: in Triton's interpreter, or compiled where there is a GPU."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from page_builder import POISON, Pages, Recipe, operands_of, scalars
from torch import Tensor

from pagedopt.codecs.base import StateFormat
from pagedopt.codecs.blockwise import encode, floored
from pagedopt.kernels.args import Column, Kernel, Operands, new_absmax
from pagedopt.kernels.norm import CHUNK, sum_of_squares
from pagedopt.kernels.reference import ReferenceKernel
from pagedopt.kernels.triton_tables import TILE_BLOCKS, page_tables, step_tables

triton_adamw = pytest.importorskip("pagedopt.kernels.triton_adamw", reason="Triton is not installed")

if triton_adamw.IS_INTERPRETED:
    DEVICE = torch.device("cpu")
    pytestmark = []
else:
    DEVICE = torch.accelerator.current_accelerator()
    pytestmark = [pytest.mark.gpu]

KERNEL = triton_adamw.TritonKernel()
REFERENCE = ReferenceKernel()
CPU = torch.device("cpu")
F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _as_quiet_as_a_gpu() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def name_of(thing: object) -> str:
    return str(getattr(thing, "name", thing)).removeprefix("torch.")


def normal(numel: int, seed: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def ragged(numel: int, seed: int) -> Tensor:
    """Return values over nine decades, every fifth a zero: all pieces of the codebooks."""
    scale = 10.0 ** -(9 * torch.rand(numel, generator=torch.Generator().manual_seed(seed + 1)))
    values = normal(numel, seed) * scale
    values[::5] = 0
    return values


class Twins:
    """The same parameters and pages twice, one for each kernel, which must never differ."""

    def __init__(
        self,
        shapes: list[tuple[int, ...]],
        formats: list[StateFormat],
        dtypes: list[torch.dtype] | None = None,
        *,
        capacity: int = 1 << 16,
        skew: int = 0,
    ) -> None:
        self.shapes, self.formats = shapes, formats
        self.numels = [math.prod(shape) for shape in shapes]
        dtypes = dtypes or [torch.float32] * len(shapes)
        self.params = [
            normal(n, 10 + i).to(dtype) for i, (n, dtype) in enumerate(zip(self.numels, dtypes, strict=True))
        ]
        self.ours = [skewed(param, skew) for param in self.params]
        self.pages, self.our_pages = Pages(shapes, formats, capacity), Pages(shapes, formats, capacity)
        self.our_pages.frames = [frame.to(DEVICE) for frame in self.our_pages.frames]
        self.tables = self.pages.tables()

    def grads(self, seed: int, dtypes: list[torch.dtype] | None = None) -> list[Tensor | None]:
        dtypes = dtypes or [torch.float32] * len(self.numels)
        return [ragged(n, seed + i).to(dtype) for i, (n, dtype) in enumerate(zip(self.numels, dtypes, strict=True))]

    def age(self, steps: int = 2) -> None:
        """Give both the state of some steps of the reference."""
        for step in range(1, steps + 1):
            self.pages.update(REFERENCE, operands_of(self.params, self.grads(100 * step), [scalars(step)]))
        for theirs, ours in zip(self.params, self.ours, strict=True):
            ours.copy_(theirs)
        for theirs, ours in zip(self.pages.frames, self.our_pages.frames, strict=True):
            ours.copy_(theirs)

    def step(
        self,
        grads: list[Tensor | None],
        rows: list[list[float]],
        scalar_rows: list[int] | None = None,
        *,
        skew: int = 0,
    ) -> None:
        """Update both; on the GPU the gradients begin `skew` elements into their memory."""
        self.pages.update(REFERENCE, operands_of(self.params, grads, rows, scalar_rows))
        ours = operands_of(
            self.ours, [None if grad is None else skewed(grad, skew) for grad in grads], rows, scalar_rows
        )
        self.our_pages.update(KERNEL, moved(ours))

    def assert_equal(self) -> None:
        for operand, (theirs, ours) in enumerate(zip(self.params, self.ours, strict=True)):
            assert torch.equal(theirs, ours.cpu()), f"parameter {operand} {self.shapes[operand]}"
        for page, (theirs, ours) in enumerate(zip(self.pages.frames, self.our_pages.frames, strict=True)):
            assert torch.equal(theirs, ours.cpu()), f"page {page}"


def skewed(tensor: Tensor, skew: int) -> Tensor:
    """Return a copy on the device, beginning `skew` elements into its memory."""
    return torch.cat([tensor.new_zeros(skew), tensor]).to(DEVICE)[skew:]


def moved(operands: Operands) -> Operands:
    return Operands(operands.params, operands.grads, operands.scalar_rows, operands.scalars, operands.absmax.to(DEVICE))


# --- the bits of the reference ------------------------------------------------------------------------------------

SIZES = [(1,), (255,), (256,), (257,), (5133,), (3, 300), (2, 320), (9, 20)]
"""One value, either side of a block, a tile with an odd tail, rows of short blocks (odd and in fours), narrow rows."""


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("param_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("state_format", list(StateFormat), ids=name_of)
def test_every_format_and_pair_of_dtypes_gives_the_bits_of_the_reference(state_format, param_dtype, grad_dtype):
    twins = Twins(SIZES, [state_format] * len(SIZES), [param_dtype] * len(SIZES))
    twins.age()
    twins.step(twins.grads(900, [grad_dtype] * len(SIZES)), [scalars(3)])
    twins.assert_equal()


@pytest.mark.parametrize(("param_skew", "grad_skew"), [(0, 0), (0, 3), (1, 0), (4, 4), (8, 8)])
@pytest.mark.parametrize("state_format", list(StateFormat), ids=name_of)
def test_where_parameters_and_gradients_begin_in_memory_never_changes_a_bit(state_format, param_skew, grad_skew):
    """Whole tiles, tiles of short blocks in fours and unaligned ones are read in three ways."""
    shapes = [(4096,), (3, 320)]
    twins = Twins(shapes, [state_format] * 2, [torch.bfloat16, torch.float32], skew=param_skew)
    twins.age()
    twins.step(twins.grads(900), [scalars(3)], skew=grad_skew)
    twins.assert_equal()


@pytest.mark.parametrize("state_format", [BLOCKWISE, TENSORWISE], ids=name_of)
@pytest.mark.parametrize("grad_of_one", [None, 0.0, math.nan])
def test_a_whole_tile_without_zeros_gives_the_bits_of_the_reference_and_so_does_one_with(state_format, grad_of_one):
    """Most tiles have no zero, and are spared what zeros need."""
    twins = Twins([(8192,)], [state_format], [torch.bfloat16])
    for step in (1, 2, 3):
        grad = normal(8192, step) + 10.0**-step
        assert (grad != 0).all()
        if grad_of_one is not None:
            grad[5000] = grad_of_one
        twins.step([grad.bfloat16()], [scalars(step)])
        assert_equal_but_for_nan(twins)


@pytest.mark.parametrize("zero", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("state_format", [BLOCKWISE, TENSORWISE], ids=name_of)
def test_one_zero_in_one_moment_of_a_whole_tile_gives_the_bits_of_the_reference(state_format, zero):
    """A moment that is zero beside one that is not: m keeps the zero code, and a root of zero is lifted."""
    twins = Twins([(4096,)], [state_format])
    for step in (1, 2):
        twins.step([normal(4096, step) + 0.5], [scalars(step)])
    for pages in (twins.pages, twins.our_pages):
        pages.fill(0, zero, lambda array: array[1234:1235].zero_())
    grad = normal(4096, 3) + 0.5
    grad[1234] = 0
    twins.step([grad], [scalars(3)])
    twins.assert_equal()
    codes = twins.pages.state(0)
    assert (int(codes["exp_avg"][1234]) == 0) is (zero == "exp_avg")
    assert int(codes["exp_avg_sq"][1234]) != 0


def assert_equal_but_for_nan(twins: Twins) -> None:
    for theirs, ours in [*zip(twins.params, twins.ours, strict=True), *zip(*frames_of(twins), strict=True)]:
        assert torch.equal(theirs.isnan(), ours.cpu().isnan())
        assert torch.equal(theirs.nan_to_num(), ours.cpu().nan_to_num())


def frames_of(twins: Twins) -> tuple[list[Tensor], list[Tensor]]:
    return twins.pages.frames, twins.our_pages.frames


def test_segments_that_begin_at_any_block_of_a_row_give_the_bits_of_the_reference():
    shapes, formats = [(1500,), (9, 600), (700,), (12, 301)], [BLOCKWISE, BLOCKWISE, TENSORWISE, BLOCKWISE]
    twins = Twins(shapes, formats, capacity=4096)
    segments = [(place.segment, place.grid.row_width) for places in twins.pages.places for place in places]
    leads = [segment.start % width for segment, width in segments if segment.start % width + segment.numel > width]
    assert sum(lead > 0 for lead in leads) >= 3
    twins.age()
    twins.step(twins.grads(900), [scalars(3)])
    twins.assert_equal()


def test_a_page_of_every_format_and_several_dtypes_is_updated_each_operand_with_its_own_scalars():
    shapes = [(300,), (300,), (2, 300), (300,), (40,)]
    formats = [F32, AMSGRAD, BLOCKWISE, TENSORWISE, BLOCKWISE]
    twins = Twins(shapes, formats, [torch.float32, torch.bfloat16, torch.bfloat16, torch.float16, torch.float32])
    twins.age()
    grads = twins.grads(900, [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float32])
    recipes = [Recipe(), Recipe(lr=0.1, betas=(0.5, 0.9), eps=1e-6, weight_decay=0.0, grad_scale=-0.25)]
    twins.step(grads, [scalars(3, recipes[0]), scalars(77, recipes[1])], [1, 0, 1, 1, 0])
    twins.assert_equal()


def test_an_operand_without_gradient_is_passed_over():
    shapes, formats = [(300,), (2, 300), (300,), (256,), (10,)], [F32, BLOCKWISE, TENSORWISE, BLOCKWISE, AMSGRAD]
    twins = Twins(shapes, formats)
    twins.age()
    before = [param.clone() for param in twins.params]
    some = [None if operand in (0, 1, 2) else grad for operand, grad in enumerate(twins.grads(900))]
    twins.step(some, [scalars(3)])
    twins.assert_equal()
    assert [torch.equal(a, b) for a, b in zip(before, twins.params, strict=True)] == [True, True, True, False, False]


def test_a_page_of_nothing_but_operands_without_gradient_is_not_changed():
    twins = Twins([(300,), (300,)], [BLOCKWISE, TENSORWISE])
    twins.age()
    twins.step([None, None], [scalars(3)])
    twins.assert_equal()


def test_a_staged_copy_of_a_segment_is_updated_from_its_first_value():
    """What the optimizer does for a parameter without flat memory: base 0, and a table of one segment."""
    twins = Twins([(4, 600)], [BLOCKWISE], capacity=1088)
    twins.age()
    (grad,) = twins.grads(900)
    twins.pages.update(REFERENCE, operands_of(twins.params, [grad], [scalars(3)]))
    tables = twins.pages.tables(staged=True)
    for table, places, frame in zip(tables, twins.pages.places, twins.our_pages.frames, strict=True):
        (segment,) = [place.segment for place in places]
        param, part = twins.ours[0][segment.start : segment.stop], grad[segment.start : segment.stop]
        staged = operands_of([param.clone()], [part.to(DEVICE)], [scalars(3)])
        KERNEL.update(table, frame, moved(staged))
        param.copy_(staged.params[0])
    twins.assert_equal()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_a_parameter_is_rounded_to_nearest_even(dtype):
    """Scalars for which p becomes p - m, and m half the gap below p: every value is a tie."""
    row = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 4.0]
    bits = torch.randint(-(2**15), 2**15, (3000,), dtype=torch.int16)
    params = bits.view(dtype).nan_to_num(1.0)
    below = (params.view(torch.int16) - 1).view(dtype).nan_to_num(0.0)
    twins = Twins([(3000,)], [F32], [dtype])
    for ours in (twins.params[0], twins.ours[0]):
        ours.copy_(params)
    for pages in (twins.pages, twins.our_pages):
        pages.fill(0, "exp_avg", lambda array: array.copy_((params.float() - below.float()) / 2))
    twins.step([torch.zeros(3000)], [row])
    twins.assert_equal()
    assert 0.3 < (twins.params[0] == params).float().mean() < 0.7


# --- numbers at the edge ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -3e38])
@pytest.mark.parametrize("state_format", list(StateFormat), ids=name_of)
def test_a_gradient_that_is_not_finite_or_overflows_spoils_its_own_value_alone(state_format, bad):
    twins = Twins([(600,)], [state_format])
    twins.age()
    (grad,) = twins.grads(900)
    grad[77] = bad
    twins.step([grad], [scalars(3)])

    for theirs, ours in [(twins.params[0], twins.ours[0].cpu()), *zip_states(twins)]:
        assert torch.equal(theirs.isnan(), ours.isnan())
        assert torch.equal(theirs.nan_to_num(), ours.nan_to_num())
    spoiled = ~twins.ours[0].isfinite()
    assert spoiled.nonzero().flatten().tolist() == ([77] if not math.isfinite(bad) else [])


def zip_states(twins: Twins) -> Iterator[tuple[Tensor, Tensor]]:
    twins.our_pages.frames = [frame.cpu() for frame in twins.our_pages.frames]
    for name, theirs in twins.pages.state(0).items():
        yield theirs.float(), twins.our_pages.state(0)[name].float()


@pytest.mark.parametrize("state_format", list(StateFormat), ids=name_of)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-22, 1e15])
def test_gradients_whose_squares_underflow_or_nearly_overflow_give_the_bits_of_the_reference(state_format, scale):
    if not triton_adamw.IS_INTERPRETED and triton_adamw.triton.__version__ < "3.6":
        pytest.skip("Triton before 3.6 takes floats below 2^-126 for zero")
    twins = Twins([(600,)], [state_format])
    for step in (1, 2):
        (grad,) = twins.grads(900 + step)
        twins.step([grad * scale], [scalars(step)])
        twins.assert_equal()


def test_a_maximum_of_amsgrad_that_is_nan_stays_nan():
    twins = Twins([(300,)], [AMSGRAD])
    for pages in (twins.pages, twins.our_pages):
        pages.fill(0, "max_exp_avg_sq", lambda array: array[7:9].fill_(math.nan))
    twins.step(twins.grads(900), [scalars(1)])
    assert twins.ours[0].isnan().nonzero().flatten().tolist() == [7, 8]


# --- tensor-wise state --------------------------------------------------------------------------------------------


def test_measuring_raises_the_absmax_of_tensorwise_operands_and_changes_nothing_else():
    shapes, formats = [(1500,), (300,), (2000,)], [TENSORWISE, BLOCKWISE, TENSORWISE]
    twins = Twins(shapes, formats, capacity=2048)
    twins.age()
    grads = twins.grads(900)
    theirs = operands_of(twins.params, grads, [scalars(3)])
    ours = moved(operands_of(twins.ours, [grad.to(DEVICE) for grad in grads], [scalars(3)]))
    for kernel, pages, operands in ((REFERENCE, twins.pages, theirs), (KERNEL, twins.our_pages, ours)):
        for table, frame in zip(twins.tables, pages.frames, strict=True):
            kernel.measure(table, frame, operands)
    assert torch.equal(theirs.absmax, ours.absmax.cpu())
    assert (theirs.absmax > 0).all(1).tolist() == [True, False, True]
    twins.assert_equal()


def test_measuring_never_lowers_an_absmax():
    twins = Twins([(300,)], [TENSORWISE])
    operands = moved(operands_of(twins.ours, [torch.ones(300, device=DEVICE)], [scalars(1)]))
    operands.absmax[0, 0] = 7.0
    KERNEL.measure(twins.tables[0], twins.our_pages.frames[0], operands)
    assert operands.absmax[0, 0] == 7.0
    assert 0 < operands.absmax[0, 1] < 7


# --- memory -------------------------------------------------------------------------------------------------------


def test_nothing_beside_a_parameter_or_an_array_is_touched():
    twins = Twins([(257,), (3, 301), (70,), (31,)], [F32, BLOCKWISE, TENSORWISE, AMSGRAD], capacity=4096)
    guarded = [torch.full((n + 10,), 7.0, device=DEVICE) for n in twins.numels]
    twins.ours = [memory[5:-5].copy_(param) for memory, param in zip(guarded, twins.params, strict=True)]
    twins.step(twins.grads(900), [scalars(1)])
    twins.assert_equal()
    assert all((memory[:5] == 7).all() and (memory[-5:] == 7).all() for memory in guarded)
    twins.our_pages.frames = [frame.cpu() for frame in twins.our_pages.frames]
    assert all((free == POISON).all() for free in twins.our_pages.free_bytes())


@pytest.mark.parametrize("state_format", [F32, BLOCKWISE], ids=name_of)
def test_a_segment_beyond_2_31_values_is_addressed_in_64_bits(state_format):
    """The parameter is its own gradient; all of it but the segment stays untouched, and takes no memory."""
    first = 2**31 + 512
    param = torch.empty(first + 300, dtype=torch.bfloat16, device=DEVICE)
    values = normal(300, 1).bfloat16()
    param[first:] = values
    twins = Twins([(300,)], [state_format], [torch.bfloat16])
    twins.params[0].copy_(values)
    (table,) = twins.pages.tables()
    far = table.clone()
    far[0, Column.START] = far[0, Column.BASE] = first
    far[0, Column.ROW_WIDTH] = first + 300

    REFERENCE.update(table, twins.pages.frames[0], operands_of(twins.params, twins.params, [scalars(1)]))
    KERNEL.update(far, twins.our_pages.frames[0], moved(operands_of([param], [param], [scalars(1)])))

    twins.ours = [param[first:]]
    twins.assert_equal()


def test_tables_live_as_long_as_what_they_were_made_of_and_hold_no_gradient():
    kernel = triton_adamw.TritonKernel()
    twins = Twins([(300,)], [BLOCKWISE])
    (table,) = twins.pages.tables()
    (grad,) = twins.grads(900)
    grad = grad.to(DEVICE)
    operands = moved(operands_of(twins.ours, [grad], [scalars(1)]))
    kernel.update(table, twins.our_pages.frames[0], operands)
    assert (len(kernel._pages), list(operands.derived)) == (1, ["triton"])

    alive = weakref.ref(grad)
    del grad, operands
    gc.collect()
    assert alive() is None
    assert len(kernel._pages) == 1
    del table
    gc.collect()
    assert len(kernel._pages) == 0


# --- launches -----------------------------------------------------------------------------------------------------


class Counted:
    """A kernel function that counts its launches."""

    def __init__(self, function: object) -> None:
        self.function, self.launches = function, 0

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        self.launches += 1
        return self.function[grid]


@pytest.mark.parametrize(
    ("dtypes", "launches"),
    [
        ([torch.float32, torch.float32, torch.float32], 1),
        ([torch.bfloat16, torch.bfloat16, torch.float32], 2),
    ],
)
def test_a_page_takes_one_launch_for_each_pair_of_dtypes_whatever_its_formats(monkeypatch, dtypes, launches):
    twins = Twins([(300,), (300,), (300,)], [F32, BLOCKWISE, AMSGRAD], dtypes)
    counted = Counted(triton_adamw.update_page)
    monkeypatch.setattr(triton_adamw, "update_page", counted)
    twins.step(twins.grads(900), [scalars(1)])
    assert counted.launches == launches


def test_a_step_uploads_its_operands_once_whatever_its_pages(monkeypatch):
    uploads = []
    real = triton_adamw.step_tables
    monkeypatch.setattr(triton_adamw, "step_tables", lambda *args: uploads.append(1) or real(*args))
    twins = Twins([(700,), (700,)], [BLOCKWISE, TENSORWISE], capacity=1088)
    assert len(twins.pages.frames) > 2
    twins.step(twins.grads(900), [scalars(1)])
    assert len(uploads) == 1


# --- the codec on its own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_values_at_every_threshold_and_midpoint_get_the_codes_of_the_reference(signed, staged):
    """A page whose first block decodes to the values either side of every place where the code changes."""
    absmax = floored(torch.tensor(1.0))
    low, high = torch.zeros(255, dtype=torch.int32), torch.full((255,), torch.tensor(1.0).view(torch.int32).item())
    target = torch.arange(1, 256 if not signed else 129)
    low, high = low[: len(target)], high[: len(target)].int()
    while bool(((high - low) > 1).any()):  # bisect over the bits for the first float of each code
        middle = (low + high) // 2
        reached = encode(middle.view(torch.float32), absmax, signed=signed).view(torch.uint8).int() >= target
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    edges = torch.cat([low.clamp_min(1), high]).view(torch.float32)
    values = torch.cat([edges, -edges] if signed else [edges])
    values = torch.cat([values, values.new_ones(1)])  # the block's absmax
    values = torch.nn.functional.pad(values, (0, -len(values) % 256), value=1).view(-1, 256)

    ours = encoded(values.to(DEVICE), signed=signed, staged=staged)
    assert torch.equal(ours.cpu(), encode(values, absmax, signed=signed).view(torch.uint8))


def encoded(values: Tensor, *, signed: bool, staged: bool) -> Tensor:
    from triton_probe import encode_blocks

    from pagedopt.kernels.triton_codec import codec_table

    table, codes = codec_table(values.device), torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    encode_blocks[(len(values),)](table, values, codes, SIGNED=signed, STAGED=staged, enable_fp_fusion=False)
    return codes


# --- how tiles are read -------------------------------------------------------------------------------------------

WHOLE, IN_FOURS, ANY = 2, 1, 0


@pytest.mark.parametrize(
    ("shape", "state_format", "layouts"),
    [
        ((8192,), BLOCKWISE, [WHOLE, WHOLE]),
        ((32, 256), BLOCKWISE, [WHOLE, WHOLE]),
        ((4100,), BLOCKWISE, [WHOLE, IN_FOURS]),
        ((4099,), BLOCKWISE, [WHOLE, ANY]),
        ((2, 320), BLOCKWISE, [IN_FOURS]),
        ((2, 322), BLOCKWISE, [ANY]),
        ((4100,), F32, [WHOLE, ANY]),
        ((4100,), TENSORWISE, [WHOLE, ANY]),
    ],
)
def test_a_tile_is_read_as_wide_as_its_blocks_allow(shape, state_format, layouts):
    assert layouts_of(shape, state_format) == layouts


def test_a_tile_is_read_wide_where_all_begins_on_multiples_of_16_bytes():
    assert layouts_of((4096,), BLOCKWISE, param_skew=8, grad_skew=4, frame_skew=16) == [WHOLE]
    assert layouts_of((4096,), BLOCKWISE, param_skew=4, grad_skew=4, frame_skew=16) == [IN_FOURS]
    assert layouts_of((2, 320), BLOCKWISE, param_skew=4, grad_skew=4, frame_skew=16) == [IN_FOURS]


@pytest.mark.parametrize("shape", [(4096,), (2, 320)])
def test_a_tile_is_read_value_by_value_where_anything_begins_between_multiples_of_four_values(shape):
    for skew in ({"param_skew": 1}, {"param_skew": 2}, {"grad_skew": 3}, {"frame_skew": 4}):
        assert layouts_of(shape, BLOCKWISE, **skew) == [ANY]


def layouts_of(
    shape: tuple[int, ...], state_format: StateFormat, *, param_skew: int = 0, grad_skew: int = 0, frame_skew: int = 0
) -> list[int]:
    from triton_probe import layout_of_tile

    pages = Pages([shape], [state_format])
    page = page_tables(pages.tables()[0], DEVICE)
    param = aligned(2, torch.bfloat16)[param_skew:]
    grad = aligned(2, torch.float32)[grad_skew:]
    step = step_tables(operands_of([param], [grad], [scalars(1)]), DEVICE)
    layouts = torch.full((page.num_tiles,), -1, dtype=torch.int32, device=DEVICE)
    frame = aligned(8, torch.uint8)[frame_skew:]
    layout_of_tile[(page.num_tiles,)](page.tiles, page.segments, step.operands, frame, layouts, BLOCKS=TILE_BLOCKS)
    return layouts.tolist()


def aligned(numel: int, dtype: torch.dtype) -> Tensor:
    """Return memory that begins on a multiple of 64 bytes."""
    memory = torch.zeros(numel * 8 + 128, dtype=torch.uint8, device=DEVICE)
    return memory[-memory.data_ptr() % 64 :][: numel * 8 + 64].view(dtype)


# --- norms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("numel", [0, 1, 2049, CHUNK + 1, 5 * CHUNK])
def test_the_sum_of_squares_has_the_bits_of_the_reference(dtype, numel):
    grad = normal(numel, 3).to(dtype)
    ours = KERNEL.squared_norm(grad.to(DEVICE))
    assert (ours.shape, ours.dtype, ours.device.type) == ((), torch.float32, DEVICE.type)
    assert torch.equal(ours.cpu(), REFERENCE.squared_norm(grad))


def test_the_sum_of_squares_is_added_up_in_the_order_of_the_reference():
    """In float64: rounded to float32, most orders agree."""
    grad = ragged(3 * CHUNK + 77, 3)
    ours = triton_adamw._sum_of_squares(grad.to(DEVICE))
    assert torch.equal(ours.cpu(), sum_of_squares(grad))
    assert not torch.equal(ours.cpu(), grad.double().square().cumsum(0)[-1])


def test_the_sum_of_squares_of_a_strided_gradient_has_the_bits_of_the_reference():
    grad = normal(4 * 30 * 40, 3).view(4, 30, 40)
    for view in (grad.transpose(0, 2), grad[:, ::3, 1:]):
        assert torch.equal(KERNEL.squared_norm(view.to(DEVICE)).cpu(), REFERENCE.squared_norm(view))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_shows_in_the_sum_of_squares(bad):
    grad = torch.ones(CHUNK + 5, device=DEVICE)
    grad[CHUNK] = bad
    assert not KERNEL.squared_norm(grad).isfinite()


def test_the_kernel_keeps_the_protocol():
    kernel: Kernel = KERNEL
    assert kernel.name == "triton"
    assert new_absmax(3, DEVICE).shape == (3, 2)
