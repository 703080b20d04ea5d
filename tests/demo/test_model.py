"""The demo's transformer: its size, and that it only looks back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedopt.demo.model import HEAD_WIDTH, Shape, new_transformer, shape_for
from pagedopt.demo.show import CONTEXT

CPU = torch.device("cpu")
SMALL = Shape(depth=2, width=64, context=12)


def test_a_shape_tells_the_parameters_of_its_transformer() -> None:
    model = new_transformer(SMALL, seed=0, device=CPU)

    assert SMALL.num_params == sum(parameter.numel() for parameter in model.parameters())


def test_the_usual_model_has_at_least_eight_million_parameters() -> None:
    assert 8_000_000 <= shape_for(8_000_000, context=CONTEXT).num_params < 10_000_000


@given(st.integers(1, 10**11))
def test_a_model_has_at_least_the_parameters_asked_for_and_a_narrower_one_has_fewer(num_params: int) -> None:
    shape = shape_for(num_params, context=16)

    assert shape.num_params >= num_params
    if shape.width > HEAD_WIDTH:
        assert Shape(shape.depth, shape.width - HEAD_WIDTH, shape.context).num_params < num_params


def test_logits_depend_on_no_later_byte() -> None:
    model = new_transformer(SMALL, seed=0, device=CPU)
    for parameter in model.parameters():  # a fresh model's blocks are the identity, which looks nowhere
        torch.nn.init.normal_(parameter, std=0.2)
    text = torch.randint(256, (1, 12))
    changed = text.clone()
    changed[0, 8] = (text[0, 8] + 1) % 256

    before, after = model(text), model(changed)

    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_first_weights_depend_on_the_seed_alone_and_leave_other_random_numbers_as_they_were() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    first, same, other = (new_transformer(SMALL, seed=seed, device=CPU) for seed in (5, 5, 6))

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
