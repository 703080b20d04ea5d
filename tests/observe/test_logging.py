"""What is logged: the layout once, a step where somebody asks, and nothing to nobody."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from watched import small_optimizer

import pagedopt
from child import run_python
from pagedopt.optim import reports


def test_the_layout_is_logged_when_it_is_made_and_not_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = small_optimizer(tmp_path)

    with caplog.at_level(logging.INFO, "pagedopt"):
        for _ in range(3):
            optimizer.step()
        layouts = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
        optimizer.add_param_group({"params": [_stepped()]})
        optimizer.step()

    assert len(layouts) == 1
    pages = optimizer.memory_stats().pages
    for part in ("1 parameters on cpu", f"{pages} pages of 64 KiB", "budget 384 KiB", " backend", str(tmp_path)):
        assert part in layouts[0]
    assert "2 parameters on cpu" in caplog.text


def _stepped() -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.zeros(8))
    param.grad = torch.ones_like(param)
    return param


def test_each_step_is_logged_at_debug_with_what_it_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = small_optimizer(tmp_path)
    optimizer.step()

    with caplog.at_level(logging.DEBUG, "pagedopt"):
        optimizer.step()

    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    stats = optimizer.step_stats()
    assert f"{optimizer.memory_stats().pages} pages used, {stats.faults} faults" in line
    assert "wrote 0 B to RAM and " in line
    assert "0 B to disk" not in line


def test_nothing_is_formatted_while_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("formatted for nobody")

    monkeypatch.setattr(reports, "format_bytes", refuse)
    optimizer = small_optimizer(tmp_path)

    optimizer.step()

    with pytest.raises(AssertionError, match="nobody"):  # so that this test would have noticed
        _step_aloud(optimizer)


def _step_aloud(optimizer: torch.optim.Optimizer) -> None:
    logger = logging.getLogger("pagedopt")
    logger.setLevel(logging.DEBUG)
    try:
        optimizer.step()
    finally:
        logger.setLevel(logging.NOTSET)


def test_a_program_that_says_nothing_about_logging_hears_nothing() -> None:
    done = run_python("import logging, pagedopt; logging.getLogger('pagedopt').error('this is heard by nobody')")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_stepping_parameter_by_parameter_logs_each_pass_when_the_next_begins(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = pagedopt.PagedAdamW8bit([(name, _stepped()) for name in "abc"], page_size="64KiB")

    with caplog.at_level(logging.DEBUG, "pagedopt"):
        for name in ("a", "b", "c", "a", "b"):  # c has no gradient the second time
            optimizer.step_param(name)
        assert len(messages(caplog, logging.INFO)) == 1
        assert len(messages(caplog, logging.DEBUG)) == 1
        optimizer.step_param("a")
        optimizer.close()

    assert "3 parameters on cpu" in messages(caplog, logging.INFO)[0]
    used = [int(line.split()[1]) for line in messages(caplog, logging.DEBUG)]
    assert used == [3, 2, 1]
    assert len(messages(caplog, logging.INFO)) == 1


def test_a_step_that_follows_backward_logs_one_line_for_both(caplog: pytest.LogCaptureFixture) -> None:
    param = _stepped()
    optimizer = pagedopt.PagedAdamW8bit([param], page_size="64KiB")

    with caplog.at_level(logging.DEBUG, "pagedopt"), pagedopt.step_in_backward(optimizer):
        for _ in range(3):
            param.sum().backward()
            optimizer.step()
        optimizer.close()

    assert [int(line.split()[1]) for line in messages(caplog, logging.DEBUG)] == [1, 1, 1]
