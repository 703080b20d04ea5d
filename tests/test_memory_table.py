"""The memory table: it counts what the pages hold, and a budget splits it without losing a byte."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedopt import AdamW, AdamW8bit
from pagedopt.codecs.base import StateFormat
from pagedopt.layout import ARRAY_ALIGNMENT
from pagedopt.memory import as_json, as_markdown, memory_rows, state_nbytes

SHAPES = [(384, 384), (100, 70), (3, 5), (4096,), (4095,), (64, 32, 3)]


@pytest.mark.parametrize(
    ("optimizer_class", "state_format"), [(AdamW, StateFormat.FLOAT32), (AdamW8bit, StateFormat.BLOCKWISE8)]
)
def test_the_table_counts_what_an_optimizer_keeps(
    optimizer_class: type[torch.optim.Optimizer], state_format: StateFormat
) -> None:
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizer_class(parameters)
    optimizer.step()

    states = [optimizer.state[parameter] for parameter in parameters]
    kept = sum(t.numel() * t.element_size() for state in states for name, t in state.items() if name != "step")
    num_arrays = sum(len(state) - 1 for state in states)

    assert kept <= state_nbytes(SHAPES, state_format) <= kept + num_arrays * (ARRAY_ALIGNMENT - 1)


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_a_budget_splits_the_state_without_losing_a_byte(num_params: int, budget: int) -> None:
    (row,) = memory_rows([num_params], budget_nbytes=budget)

    assert row.resident_nbytes + row.elsewhere_nbytes == row.state_8bit_nbytes
    assert row.resident_nbytes <= budget
    assert row.elsewhere_nbytes == 0 or row.resident_nbytes == budget


def test_eight_bits_take_two_bytes_a_value_and_eight_a_block() -> None:
    (row,) = memory_rows([256 * 10**6], budget_nbytes=0)

    assert row.state_32bit_nbytes == 8 * 256 * 10**6
    assert row.state_8bit_nbytes == (2 * 256 + 8) * 10**6


def test_json_and_markdown_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    rows = memory_rows([7 * 10**9], budget_nbytes=1 << 30)

    data = json.loads(as_json(rows, budget_nbytes=1 << 30))
    last_line = as_markdown(rows, budget_nbytes=1 << 30).splitlines()[-1]

    assert data["budget_nbytes"] == data["rows"][0]["resident_nbytes"] == 1 << 30
    assert data["rows"][0]["state_32bit_nbytes"] == 56 * 10**9
    assert last_line == "| 7B | 52.2 GiB | 13.2 GiB | 1 GiB | 12.2 GiB |"
