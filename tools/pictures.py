"""Draw docs/pictures: a real training of seconds, traced, and what bench/results has.

    python tools/pictures.py

The training is that of the demo, smaller: a transformer that learns the next byte of Python's standard library, with a
third of its 8-bit state in RAM and the rest on disk. Its times are those of the machine that it runs on.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import pagedopt
from pagedopt.demo.model import new_transformer, shape_for
from pagedopt.demo.text import batches, read_corpus

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"

NUM_PARAMS, CONTEXT, BATCH_SIZE = 3_000_000, 64, 4
PAGE_NBYTES = 256 << 10
BUDGET = 8 * PAGE_NBYTES
STEPS, WARM_UP = 6, 2


def trace_training(path: Path, spill_dir: Path) -> None:
    """Train for some steps and write their trace; the first steps, which make the pages, are not in it."""
    shape = shape_for(NUM_PARAMS, context=CONTEXT)
    model = new_transformer(shape, seed=0, device=torch.device("cpu"))
    stream = batches(read_corpus().train, batch_size=BATCH_SIZE, context=CONTEXT, seed=0)
    with pagedopt.PagedAdamW8bit(
        model.parameters(), lr=1e-3, page_size=PAGE_NBYTES, max_host_memory=BUDGET, spill_dir=spill_dir
    ) as optimizer:

        def train(num_steps: int) -> None:
            for inputs, targets in islice(stream, num_steps):
                cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
                optimizer.step()
                optimizer.zero_grad()

        train(WARM_UP)
        with pagedopt.trace(optimizer, path):
            train(STEPS)


def main() -> None:
    """Draw all pictures of the documents."""
    results = sorted((ROOT / "bench" / "results").glob("*.json"))
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        trace_training(trace, Path(folder))
        for path in pagedopt.plot(trace, *results, out=PICTURES, formats=["svg"]):
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
