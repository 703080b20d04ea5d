"""One run of the demo: its schedule, its yardstick, and that a seed decides everything."""

from __future__ import annotations

import pytest
import torch

from pagedopt.demo.model import Shape, new_transformer
from pagedopt.demo.text import Corpus
from pagedopt.demo.training import Recipe, Run, train

CPU = torch.device("cpu")


@pytest.fixture
def corpus() -> Corpus:
    """Text that is easy to learn: one letter follows another."""
    letters = torch.arange(97, 123, dtype=torch.uint8)
    return Corpus(train=letters.repeat(200), validation=letters.repeat(40), num_files=2)


def _train(corpus: Corpus, *, steps: int = 8, seed: int = 0, learning_rate: float = 3e-3) -> Run:
    recipe = Recipe(Shape(depth=1, width=64, context=16), steps, CPU, batch_size=2, learning_rate=learning_rate)
    model = new_transformer(recipe.shape, seed=0, device=CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas)
    return train(model, optimizer, corpus, recipe, name="AdamW", seed=seed, after_step=lambda step, loss: None)


def test_a_run_is_its_seed(corpus: Corpus) -> None:
    first, same, other = _train(corpus), _train(corpus), _train(corpus, seed=1)

    assert first.losses == same.losses
    assert first.checks == same.checks
    assert first.losses != other.losses


def test_a_run_learns(corpus: Corpus) -> None:
    run = _train(corpus, steps=30)

    assert run.losses[0] > 5
    assert run.final_loss < 3
    assert run.final_check < 3


def test_all_runs_are_validated_with_the_same_bytes(corpus: Corpus) -> None:
    unmoved = [_train(corpus, seed=seed, learning_rate=0.0) for seed in (0, 1)]

    assert unmoved[0].losses != unmoved[1].losses
    assert unmoved[0].checks == unmoved[1].checks


def test_a_run_tells_every_step_and_what_it_cost(corpus: Corpus) -> None:
    run = _train(corpus, steps=8)

    assert len(run.losses) == len(run.model_seconds) == len(run.optimizer_seconds) == 8
    assert min(run.model_seconds + run.optimizer_seconds) > 0


def test_no_gradient_is_left_to_the_next_step(corpus: Corpus) -> None:
    left: list[torch.Tensor] = []
    model = new_transformer(Shape(depth=1, width=64, context=16), seed=0, device=CPU)
    model.register_forward_pre_hook(lambda *_: left.extend(p.grad for p in model.parameters() if p.grad is not None))
    recipe = Recipe(Shape(depth=1, width=64, context=16), 3, CPU, batch_size=2)

    train(model, torch.optim.AdamW(model.parameters()), corpus, recipe, name="", seed=0, after_step=lambda *_: None)

    assert left == []


def test_the_state_of_torch_is_eight_bytes_a_value_and_a_step_for_each_parameter(corpus: Corpus) -> None:
    model = new_transformer(Shape(depth=1, width=64, context=16), seed=0, device=CPU)
    parameters = list(model.parameters())

    assert _train(corpus).state_nbytes == sum(8 * p.numel() for p in parameters) + 4 * len(parameters)


@pytest.mark.parametrize("steps", [3, 9, 10, 120])
def test_the_last_step_is_always_checked_and_none_twice(steps: int) -> None:
    checked = Recipe(Shape(1, 64, 16), steps, CPU).check_steps

    assert checked[-1] == steps
    assert checked == sorted(set(checked))
    assert len(checked) == min(steps, 10)


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_a_tenth() -> None:
    recipe = Recipe(Shape(1, 64, 16), 100, CPU)
    factors = [recipe.rate_factor(step) for step in range(100)]

    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(factors[9], abs=0.03)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)
    assert factors[10:] == sorted(factors[10:], reverse=True)
