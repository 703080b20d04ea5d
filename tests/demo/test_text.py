"""The demo's text: the same files and batches every time, and validation on files that were not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pagedopt.demo.text import MIN_NBYTES, NoTextError, batches, read_corpus, source_files


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of 25 files, each of one byte value of its own, and things that are not the library's."""
    for i in range(25):
        (tmp_path / f"module{i:02}.py").write_bytes(bytes([65 + i]) * (MIN_NBYTES // 25 + 1))
    for folder in ("site-packages", "test", "__pycache__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "foreign.py").write_text("foreign")
    (tmp_path / "notes.txt").write_text("no source")
    return tmp_path


def test_validation_is_every_tenth_file_and_training_all_others(library: Path) -> None:
    corpus = read_corpus(library)

    assert set(corpus.validation.tolist()) == {65, 75, 85}
    assert set(corpus.train.tolist()) == set(range(65, 90)) - {65, 75, 85}
    assert corpus.num_files == 25


def test_installed_packages_and_tests_are_no_library(library: Path) -> None:
    assert {path.parent for path in source_files(library)} == {library}


def test_the_library_of_this_python_reads_the_same_twice() -> None:
    first, second = read_corpus(), read_corpus()

    assert torch.equal(first.train, second.train)
    assert torch.equal(first.validation, second.validation)
    assert len(first.train) > len(first.validation) > 0


def test_a_library_without_sources_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("x = 1")

    with pytest.raises(NoTextError, match=r"holds 5 bytes of Python sources, the demo trains on at least 1048576; use"):
        read_corpus(tmp_path)


def test_batches_depend_on_the_seed_alone() -> None:
    text = torch.randint(256, (10_000,), dtype=torch.uint8)

    def first_three(seed: int) -> torch.Tensor:
        stream = batches(text, batch_size=4, context=16, seed=seed)
        return torch.stack([next(stream)[0] for _ in range(3)])

    reference = first_three(7)
    torch.rand(5)

    assert torch.equal(first_three(7), reference)
    assert not torch.equal(first_three(8), reference)


def test_targets_are_the_bytes_that_follow_the_inputs() -> None:
    text = torch.arange(200, dtype=torch.uint8)

    inputs, targets = next(batches(text, batch_size=8, context=32, seed=0))

    assert inputs.shape == targets.shape == (8, 32)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


def test_the_shortest_text_is_one_context_and_its_next_byte() -> None:
    inputs, targets = next(batches(torch.arange(9, dtype=torch.uint8), batch_size=3, context=8, seed=0))

    assert inputs.tolist() == [list(range(8))] * 3
    assert targets.tolist() == [list(range(1, 9))] * 3
