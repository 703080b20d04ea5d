from fractions import Fraction

import pytest
import torch

from pagedopt.codecs.codebook import pieces, sorted_values, values_by_code

BOTH = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def formula(signed):
    values = [Fraction(0), Fraction(1)]
    for decade in range(7):
        n = 2 ** (decade if signed else decade + 1)
        for k in range(n):
            values.append(Fraction(10) ** (decade - 6) * (Fraction(1, 10) + Fraction(9, 10) * (k + Fraction(1, 2)) / n))
    if signed:
        values += [-value for value in values if 0 < value < 1]
    return sorted(values)


def published_recipe(signed):
    """The float32 steps by which the published implementation makes its table."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float32)
        middle = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += middle.tolist() + (-middle if signed else middle[:0]).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def ulps_apart(ours, theirs):
    return (ours.view(torch.int32) - theirs.view(torch.int32)).abs().max().item()


@BOTH
def test_the_values_are_within_one_ulp_of_the_formula(signed):
    exact = torch.tensor([float(value) for value in formula(signed)], dtype=torch.float32)
    assert ulps_apart(sorted_values(signed=signed), exact) <= 1


@BOTH
def test_the_values_are_within_two_ulp_of_the_published_float32_recipe(signed):
    # The recipe rounds four times; it is itself up to two ulp from the formula.
    assert ulps_apart(sorted_values(signed=signed), published_recipe(signed)) <= 2


def test_the_zero_byte_is_zero_and_signed_codes_mirror():
    signed, unsigned = values_by_code(signed=True), values_by_code(signed=False)
    assert signed[0] == 0 == unsigned[0]
    assert signed[128] == 1 == unsigned[255]
    assert torch.equal(signed[1:128], -signed[129:].flip(0))


def test_signed_codes_are_sorted_positions_less_127():
    by_position = sorted_values(signed=True)
    code = (torch.arange(256) - 127).to(torch.int8)
    assert torch.equal(values_by_code(signed=True)[code.view(torch.uint8).long()], by_position)


@BOTH
def test_thresholds_lie_midway_between_the_pieces(signed):
    positive, p = values_by_code(signed=signed), pieces(signed=signed)
    first = 1
    for threshold, count in zip(p.thresholds.tolist(), p.count.int().tolist(), strict=False):
        first += count
        assert threshold == pytest.approx((positive[first - 1] + positive[first]).item() / 2, rel=1e-7)
