"""What every kernel owes the page it is given, whatever the numbers."""

import pytest
import torch
from page_builder import POISON, Pages, operands_of, scalars

from pagedopt.codecs.base import StateFormat
from pagedopt.kernels.args import Operands
from pagedopt.kernels.reference import ReferenceKernel

KERNELS = [ReferenceKernel()]
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
F32, AMSGRAD, BLOCKWISE, TENSORWISE = StateFormat

SHAPES = [(3, 5), (40, 100), (7, 300), (1,), (2000,), (64, 64), (5, 1024), (9, 2)]
FORMATS = [F32, BLOCKWISE, BLOCKWISE, AMSGRAD, TENSORWISE, TENSORWISE, BLOCKWISE, BLOCKWISE]


def normal(numel, seed):
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def params_and_grads(seed=0):
    numels = [torch.Size(shape).numel() for shape in SHAPES]
    return [normal(n, seed) for n in numels], [normal(n, seed + 1) for n in numels]


def run(kernel, pages, params, *, steps=3):
    _, first = params_and_grads()
    for step in range(1, steps + 1):
        grads = [grad * step for grad in first]
        pages.update(kernel, operands_of(params, grads, [scalars(step)]))


@EVERY_KERNEL
@pytest.mark.parametrize("capacity", [1088, 1536, 4096, 1 << 20])
def test_the_cut_into_pages_never_changes_a_bit(kernel, capacity):
    """Several formats, short blocks and rows of every kind in one page."""
    results = []
    for size in (capacity, 1 << 16):
        params, _ = params_and_grads()
        pages = Pages(SHAPES, FORMATS, capacity=size)
        run(kernel, pages, params)
        results.append((params, [pages.state(operand) for operand in range(len(SHAPES))]))

    for ours, theirs in zip(*(params for params, _ in results), strict=True):
        assert torch.equal(ours, theirs)
    for operand, (ours, theirs) in enumerate(zip(*(states for _, states in results), strict=True)):
        for name, array in ours.items():
            if FORMATS[operand] is TENSORWISE and name.endswith("absmax"):
                assert array.unique().tolist() == theirs[name].unique().tolist()  # repeated in each segment
            else:
                assert torch.equal(array, theirs[name])


@EVERY_KERNEL
def test_bytes_that_belong_to_no_array_are_never_touched(kernel):
    params, _ = params_and_grads()
    pages = Pages(SHAPES, FORMATS, capacity=4096)
    run(kernel, pages, params)
    assert all((free == POISON).all() for free in pages.free_bytes())


@EVERY_KERNEL
def test_values_beside_a_parameter_in_its_storage_are_never_touched(kernel):
    params, _ = params_and_grads()
    guarded = [torch.full((len(param) + 6,), 7.0) for param in params]
    inner = [memory[3:-3].copy_(param) for memory, param in zip(guarded, params, strict=True)]
    run(kernel, Pages(SHAPES, FORMATS), inner)
    assert all((memory[[0, 1, 2, -3, -2, -1]] == 7).all() for memory in guarded)


@EVERY_KERNEL
def test_an_operand_without_gradient_is_passed_over(kernel):
    params, grads = params_and_grads()
    pages, alone = Pages(SHAPES, FORMATS, capacity=4096), Pages(SHAPES, FORMATS, capacity=4096)
    skipped = [0, 2, 3, 4, 7]
    before = [param.clone() for param in params]
    rest, _ = params_and_grads()

    some = [None if operand in skipped else grad for operand, grad in enumerate(grads)]
    pages.update(kernel, operands_of(params, some, [scalars(1)]))
    alone.update(kernel, operands_of(rest, grads, [scalars(1)]))

    for operand in range(len(SHAPES)):
        if operand in skipped:
            assert torch.equal(params[operand], before[operand])
            assert all((array == 0).all() for array in pages.state(operand).values())
        else:
            assert torch.equal(params[operand], rest[operand])
            assert all(torch.equal(a, alone.state(operand)[n]) for n, a in pages.state(operand).items())


@EVERY_KERNEL
def test_each_operand_is_updated_with_its_own_row_of_scalars(kernel):
    params, grads = params_and_grads()
    rows = [scalars(1), scalars(7)]
    mixed = [operand % 2 for operand in range(len(SHAPES))]
    Pages(SHAPES, FORMATS).update(kernel, operands_of(params, grads, rows, mixed))
    for row in (0, 1):
        alone, _ = params_and_grads()
        Pages(SHAPES, FORMATS).update(kernel, operands_of(alone, grads, rows, [row] * len(SHAPES)))
        assert all(torch.equal(params[i], alone[i]) for i in range(len(SHAPES)) if i % 2 == row)


@EVERY_KERNEL
def test_a_staged_copy_of_a_segment_updates_as_the_parameter_itself(kernel):
    params, grads = params_and_grads()
    direct, staged = Pages(SHAPES, FORMATS, capacity=4096), Pages(SHAPES, FORMATS, capacity=4096)
    target = [param.clone() for param in params]
    operands = operands_of(params, grads, [scalars(1)])
    direct.update(kernel, operands)

    for table, places, frame in zip(staged.tables(staged=True), staged.places, staged.frames, strict=True):
        part = {place.operand: slice(place.segment.start, place.segment.stop) for place in places}
        copies = Operands(
            params=[param[part.get(i, slice(0))].clone() for i, param in enumerate(target)],
            grads=[grad[part.get(i, slice(0))].clone() for i, grad in enumerate(grads)],
            scalar_rows=operands.scalar_rows,
            scalars=operands.scalars,
            absmax=operands.absmax,
        )
        kernel.update(table, frame, copies)
        for operand, where in part.items():
            target[operand][where] = copies.params[operand]

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(target, params, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(direct.frames, staged.frames, strict=True))


@EVERY_KERNEL
def test_measuring_changes_nothing_but_the_absmax_of_tensorwise_operands(kernel):
    params, grads = params_and_grads()
    pages = Pages(SHAPES, FORMATS, capacity=4096)
    run(kernel, pages, params, steps=1)
    before = [frame.clone() for frame in pages.frames]
    kept = [param.clone() for param in params]
    operands = operands_of(params, grads, [scalars(2)])

    for table, frame in zip(pages.tables(), pages.frames, strict=True):
        kernel.measure(table, frame, operands)

    assert all(torch.equal(a, b) for a, b in zip(before, pages.frames, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, params, strict=True))
    is_tensorwise = torch.tensor([state_format is TENSORWISE for state_format in FORMATS])
    assert torch.equal((operands.absmax > 0).all(1), is_tensorwise)
