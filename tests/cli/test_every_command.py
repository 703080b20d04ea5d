"""What holds for every command, also for those that come later: help, JSON, colours, mistakes, completion, the page."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from oracle import give, random_grads, random_params
from pagedopt import PagedAdamW8bit, cli, save

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands

RUNS: dict[str, list[str]] = {
    "demo": [],
    "doctor": ["--no-rates"],
    "plan": ["1M", "--no-rates", "--device", "cpu"],
    "memory": ["7B"],
    "inspect": ["{checkpoint}"],
    "convert": ["{checkpoint}", "{out}", "--to", "torch"],
    "plot": ["{results}"],
}
"""Arguments with which a command does little, by command."""

COMMAND = [sys.executable, "-m", "pagedopt"]

NO_DATA = {"demo", "convert", "plot"}
"""Their output is pictures and files."""

WRONG = [
    "",
    " ",
    "-1",
    "0",
    "1e400",
    "nan",
    "none",
    "many",
    "7Q",
    "100%",
    "meta",
    "/no/such/thing",
    "\x00",
    "\u2028é",
    "x" * 5000,
]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    params = random_params([(64, 80)])
    optimizer = PagedAdamW8bit(params)
    give(params, random_grads(params, seed=0))
    optimizer.step()
    save(optimizer, tmp_path / "checkpoint")
    row = {"name": "ours", "time_over_baseline": {"median": 0.5, "low": 0.4, "high": 0.6}}
    results = {
        "schema": 1,
        **dict.fromkeys(("date", "commit", "command"), ""),
        "machine": {"name": "here", "cpu": "some", "threads": 1, "accelerator": ""},
        "contests": [{"title": "a step", "baseline": "theirs", "rows": [row]}],
    }
    (tmp_path / "here.json").write_text(json.dumps(results))
    names = {"checkpoint": "checkpoint", "out": "out.pt", "results": "here.json"}
    return {place: str(tmp_path / name) for place, name in names.items()}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return what runs a command line in this process, and returns its code, output and errors."""
    monkeypatch.setattr("pagedopt.demo.show.show", lambda options, console: True)
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:  # anything else that is raised is a traceback for the user
            cli.main(list(arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run_command


def arguments_of(name: str, places: dict[str, str]) -> list[str]:
    return [name, *(argument.format(**places) for argument in RUNS[name])]


def test_every_command_is_run_here() -> None:
    assert set(RUNS) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_its_exit_codes_and_gives_an_example_that_it_understands(
    name: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(name, "--help")
    example = next(line for line in out.splitlines() if "Example: " in line).partition("Example: pagedopt ")[2].split()

    assert code == 0
    assert "Exit codes: 0 all went well" in out
    assert example[0] == name
    parsed = COMMANDS[name].make_context(name, example[1:], resilient_parsing=False)
    assert not parsed.args


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NO_DATA))
def test_every_command_whose_output_is_data_prints_json(
    name: str, run: Callable[..., Any], places: dict[str, str]
) -> None:
    code, out, _ = run(*arguments_of(name, places), "--json")

    assert code == 0
    assert json.loads(out)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_prints_colours_where_there_is_no_terminal(
    name: str, run: Callable[..., Any], places: dict[str, str]
) -> None:
    for arguments in (arguments_of(name, places), [name, "--help"], [name, "--nonsense"]):
        _, out, err = run(*arguments)
        assert "\x1b" not in out + err


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NO_DATA))
def test_what_goes_to_a_file_has_no_padding_and_no_broken_lines(
    name: str, run: Callable[..., Any], places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    _, out, _ = run(*arguments_of(name, places))
    monkeypatch.setenv("COLUMNS", "30")
    _, narrow, _ = run(*arguments_of(name, places))

    for said in (out, narrow):
        assert [line for line in said.splitlines() if line != line.rstrip()] == []
    assert "…" not in narrow  # a number that is cut is another number
    assert len(out.splitlines()) <= len(narrow.splitlines())


def wrong_command_lines() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.name != "help" and not getattr(parameter, "is_flag", False):
                yield name, parameter.opts[0] if parameter.opts[0].startswith("-") else ""


@pytest.mark.parametrize(("name", "option"), list(wrong_command_lines()))
def test_no_mistake_ends_in_a_traceback(
    name: str, option: str, run: Callable[..., Any], places: dict[str, str]
) -> None:
    for value in WRONG:
        arguments = (
            [*arguments_of(name, places), option, value] if option else [name, value, *arguments_of(name, places)[2:]]
        )
        code, out, err = run(*arguments)
        assert code in (0, 1, 2)
        assert code == 0 or err or (name == "doctor" and "broken" in out)
        assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["plan"], ["inspect"], ["convert", "x"], ["demos"], ["plan", "7B", "--budget"]])
def test_a_command_line_that_is_not_whole_ends_with_code_2(arguments: list[str], run: Callable[..., Any]) -> None:
    code, out, err = run(*arguments)

    assert code == 2
    assert not out
    assert err


def test_a_file_that_cannot_be_read_is_one_line(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr("pagedopt.checkpoint.inspection.inspect", refuse)

    assert run("inspect", "/secret") == (1, "", "error: Permission denied: /secret\n")


def test_a_warning_is_one_line_without_the_code_that_it_comes_from(tmp_path: Path) -> None:
    torch.save({"state": {}, "param_groups": []}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "default"}
    arguments = ["convert", str(tmp_path / "old.pt"), str(tmp_path / "new.pt"), "--to", "torch"]
    ended = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=100)

    assert ended.returncode == 0
    assert ended.stderr.startswith(f"warning: {tmp_path / 'old.pt'} is in torch's format from before 1.6")
    assert ended.stderr.count("\n") == 1


def test_the_page_is_current() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "command_line_page.py"))
    written = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")

    assert written == tool["page"](), "python tools/command_line_page.py writes it anew"


def in_a_shell(words: str, shell: str = "bash") -> str:
    """Return what a shell is told to offer after these words."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "_PAGEDOPT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout


def test_shells_complete_commands_and_options() -> None:
    assert in_a_shell("pagedopt do").split() == ["doctor"]
    assert in_a_shell("pagedopt plan --max-").split() == ["--max-gpu-memory", "--max-host-memory"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_colours_unless_they_are_not_wanted(variables: dict[str, str], is_coloured: bool) -> None:
    import pty

    read_end, terminal = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**inherited, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color", **variables}
    process = subprocess.Popen(
        [*COMMAND, "doctor", "--no-rates"], env=environment, stdout=terminal, stderr=terminal, stdin=terminal
    )
    os.close(terminal)
    said = b"".join(chunks(read_end))
    process.wait(timeout=100)
    os.close(read_end)

    assert b"python" in said
    assert (b"\x1b[32m" in said) is is_coloured


def chunks(read_end: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(read_end, 4096)
        except OSError:  # Linux says so when the other end is closed
            return
        if not chunk:
            return
        yield chunk


def test_a_plan_shows_no_log_of_the_packages_that_it_asks(tmp_path: Path) -> None:
    """They are imported for what they know, and say on the way what they could not load."""
    (tmp_path / "transformers.py").write_text(
        "import logging\nlogging.warning('no kernels here')\n__version__ = '0'\nCONFIG_MAPPING = {}"
    )
    (tmp_path / "config.json").write_text('{"model_type": "whatever"}')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])}
    arguments = ["plan", str(tmp_path / "config.json"), "--no-rates"]
    ended = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=100)

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: transformers 0 does not know the family 'whatever'")
    assert ended.stderr.count("\n") == 1
