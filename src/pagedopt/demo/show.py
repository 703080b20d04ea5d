"""The demo from beginning to end, live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import pagedopt
from pagedopt.demo.model import Transformer, new_transformer, shape_for
from pagedopt.demo.outcome import Outcome
from pagedopt.demo.paging import Budget, PagingMeter, PagingUse, open_pager
from pagedopt.demo.pictures import draw
from pagedopt.demo.report import print_report
from pagedopt.demo.text import Corpus, read_corpus
from pagedopt.demo.training import AfterStep, Recipe, Run, train
from pagedopt.kernels.select import kernel_for
from pagedopt.pictures.residency import residency
from pagedopt.units import format_bytes

CONTEXT = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    device: torch.device
    steps: int
    budget: Budget
    num_params: int
    out: Path
    seed: int


def show(options: Options, console: Console) -> bool:
    """Train three times, print the comparison, write the pictures into `options.out`; return whether all checks hold.

    Raises:
        NoTextError: this Python has no sources to train on.
        BudgetError: the budget cannot hold the working set of the model's state; known before anything is trained.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(shape_for(options.num_params, context=CONTEXT), options.steps, options.device)
    outcome = _train_all(recipe, read_corpus(), options, console)

    holds = print_report(console, outcome, recipe)
    drawn = draw(options.out, outcome, residency(outcome.use.events, num_pages=outcome.use.num_pages))
    console.print(f"pictures: {', '.join(map(str, drawn))}", soft_wrap=True)
    return holds


def _train_all(recipe: Recipe, corpus: Corpus, options: Options, console: Console) -> Outcome:
    model = new_transformer(recipe.shape, seed=options.seed, device=recipe.device)
    pager = open_pager(model, options.budget, recipe.device)
    _print_plan(console, recipe, corpus, options.budget)
    baseline = _train_baseline(recipe, corpus, options.seed, console)
    paged, use = _train_paged(model, recipe, corpus, options.seed, pager, console)
    reseeded = _train_baseline(recipe, corpus, options.seed + 1, console)
    return Outcome(baseline, reseeded, paged, use)


def _train_baseline(recipe: Recipe, corpus: Corpus, seed: int, console: Console) -> Run:
    model = new_transformer(recipe.shape, seed=seed, device=recipe.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas)
    with _bar(console, f"AdamW, seed {seed}", recipe.steps) as shown:
        return train(model, optimizer, corpus, recipe, name="AdamW", seed=seed, after_step=shown)


def _train_paged(
    model: Transformer, recipe: Recipe, corpus: Corpus, seed: int, pager: pagedopt.Pager, console: Console
) -> tuple[Run, PagingUse]:
    meter = PagingMeter(pager.on(recipe.device))
    name = "PagedAdamW8bit"
    optimizer = pagedopt.PagedAdamW8bit(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, pager=pager)
    with optimizer, _bar(console, f"{name}, seed {seed}", recipe.steps) as shown:

        def after_step(step: int, loss: float) -> None:
            meter.after_step(step)
            shown(step, loss)

        run = train(model, optimizer, corpus, recipe, name=name, seed=seed, after_step=after_step)
        return run, meter.use


@contextmanager
def _bar(console: Console, text: str, steps: int) -> Iterator[AfterStep]:
    """Show a bar, and yield what moves it; where there is no terminal, print it once, when the run ends."""
    columns = TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(text, total=steps, loss="")
        yield lambda step, loss: progress.update(task, completed=step, loss=f"loss {loss:.4f}")


def _print_plan(console: Console, recipe: Recipe, corpus: Corpus, budget: Budget) -> None:
    shape = recipe.shape
    console.print(
        f"A transformer of {shape.num_params:,} parameters ({shape.depth} layers of width {shape.width}, context "
        f"{shape.context}) learns the next byte of Python's standard library: {corpus.num_files} files, "
        f"{format_bytes(len(corpus.train))} to train on, {format_bytes(len(corpus.validation))} to validate with. "
        f"Budget of the paged run: {budget}. Device: {recipe.device}, {torch.get_num_threads()} threads; pages are "
        f"updated by the {kernel_for(recipe.device).name} backend.",
        highlight=False,
    )
