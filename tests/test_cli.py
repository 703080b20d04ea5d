"""The command line: help with an example, exit codes that mean something, and no traceback for a user's mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pagedopt
from pagedopt import cli
from pagedopt.demo.show import Options
from pagedopt.demo.text import NoTextError


class Result:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = " ".join(out.split())
        self.err = " ".join(err.replace("│", " ").split())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return what runs a command line in this process."""
    monkeypatch.setenv("COLUMNS", "120")

    def run_command(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run_command


COMMANDS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run, command: str) -> None:
    result = run(command, "--help")

    assert result.code == 0
    assert f"Example: pagedopt {command} " in result.out
    assert f"│ {command} " in run("--help").out


def test_the_version_is_the_packages(run) -> None:
    assert run("--version").out == f"pagedopt {pagedopt.__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--steps", "2"], "--steps"),
        (["demo", "--steps", "many"], "--steps"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--budget", "0%"], "budget must be bytes such as"),
        (["demo", "--params", "many"], 'count must look like 8000000, "8M" or "7B", got \'many\''),
        (["demo", "--device", "abacus"], "cannot train on 'abacus' here"),
        (["demo", "--device", "meta"], "cannot train on 'meta' here"),
        (["demo", "--out", __file__], "--out"),
        (["memory", "7Q"], "got '7Q'"),
        (["memory", "--budget", "1 pound"], "got '1 pound'"),
        (["memory", "--json", "--markdown"], "not both"),
        (["demos"], "demos"),
    ],
)
def test_a_wrong_value_ends_with_code_2_and_says_which(run, arguments: list[str], message: str) -> None:
    result = run(*arguments)

    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_budget_too_small_ends_with_code_2_and_the_smallest_that_works(run, tmp_path: Path) -> None:
    result = run("demo", "--params", "100K", "--budget", "1KiB", "--out", str(tmp_path))

    assert result.code == 2
    assert result.err.startswith("error: max_host_memory of 1024 bytes")
    assert "set max_host_memory to at least 327680 bytes" in result.err


def test_options_reach_the_demo_and_its_verdict_the_exit_code(run, tmp_path: Path, monkeypatch) -> None:
    seen: list[Options] = []

    def show(options: Options, console: object) -> bool:
        seen.append(options)
        return len(seen) == 1

    monkeypatch.setattr("pagedopt.demo.show.show", show)
    arguments = ["demo", "--steps", "7", "--budget", "1MiB", "--params", "9M", "--out", str(tmp_path), "--seed", "3"]

    assert [run(*arguments).code, run(*arguments).code] == [0, 1]
    options = seen[0]
    assert (options.steps, options.num_params, options.out, options.seed) == (7, 9_000_000, tmp_path, 3)
    assert (options.device.type, options.budget.of(0)) == ("cpu", 1 << 20)


def test_what_breaks_while_it_runs_ends_with_code_1_and_one_line(run, monkeypatch) -> None:
    def show(options: Options, console: object) -> bool:
        raise NoTextError("no text here")

    monkeypatch.setattr("pagedopt.demo.show.show", show)
    result = run("demo")

    assert (result.code, result.err) == (1, "error: no text here")


def test_a_missing_extra_is_named_with_how_to_get_it(run, monkeypatch) -> None:
    monkeypatch.setattr("pagedopt.cli.arguments.find_spec", lambda name: None)
    result = run("demo")

    assert (result.code, result.err) == (1, 'error: this command needs matplotlib; pip install "pagedopt[demo]"')


def test_memory_prints_a_table_json_and_markdown_of_the_same_rows(run) -> None:
    table, data, markdown = (
        run("memory", "7B", "--budget", "2GiB", *flag) for flag in ([], ["--json"], ["--markdown"])
    )

    assert [table.code, data.code, markdown.code] == [0, 0, 0]
    assert "│ 7B │ 52.2 GiB │ 13.2 GiB │ 2 GiB │ 11.2 GiB │" in table.out
    assert "| 7B | 52.2 GiB | 13.2 GiB | 2 GiB | 11.2 GiB |" in markdown.out
    assert json.loads(data.out)["rows"][0]["resident_nbytes"] == 2 << 30


def test_plot_draws_results_and_prints_where(run, tmp_path: Path) -> None:
    machine = {"name": "here", "cpu": "some", "threads": 1, "accelerator": ""}
    row = {"name": "ours", "time_over_baseline": {"median": 0.5, "low": 0.4, "high": 0.6}}
    contest = {"title": "a step", "baseline": "theirs", "rows": [row]}
    results = {"schema": 1, "date": "", "commit": "", "command": "", "machine": machine, "contests": [contest]}
    (tmp_path / "here.json").write_text(json.dumps(results))

    result = run("plot", str(tmp_path / "here.json"), "--out", str(tmp_path / "drawn"))

    assert result.code == 0
    drawn = [tmp_path / "drawn" / f"here-ratios.{ending}" for ending in ("png", "svg")]
    assert result.out.split() == list(map(str, drawn))
    assert all(path.is_file() for path in drawn)


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_plot_says_in_a_line_what_it_cannot_draw(content: str | None, run, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)

    result = run("plot", str(path))

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert "some.json" in result.err
