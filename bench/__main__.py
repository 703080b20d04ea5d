"""`python -m bench cpu | gpu | checkpoint | plan | table`: measure, show, write bench/results; or make tables of those.

torch is imported only once the number of threads is in the environment, where every peer's threads find it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_THREADS = "OMP_NUM_THREADS"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    given = _parser().parse_args(arguments)
    if given.command == "table":
        return _table(check=given.check)
    threads = given.threads or (1 if given.quick else None)
    if threads:
        os.environ[_THREADS] = str(threads)

    if given.command == "plan":
        from bench.plan import compare

        return compare(Path(given.spill_dir), given.device, quick=given.quick)

    from bench import run

    spoken = " ".join(["python -m bench", *(sys.argv[1:] if arguments is None else arguments)])
    asked = run.Asked(
        command=_without_paths(spoken),
        quick=given.quick,
        only=tuple(given.only or ()),
        spill_dir=Path(given.spill_dir),
        out=Path(given.out) if given.out else None,
    )
    try:
        if given.command == "gpu":
            return run.gpu(asked, given.device)
        return run.cpu(asked) if given.command == "cpu" else run.checkpoints(asked)
    except run.CannotRunError as error:
        print(f"bench {given.command}: {error}", file=sys.stderr)
        return 2


def _without_paths(command: str) -> str:
    """Return the command less the options that name folders of this machine."""
    words = command.split(" ")
    kept = []
    while words:
        word = words.pop(0)
        if word in ("--out", "--spill-dir"):
            words = words[1:]
        elif not word.startswith(("--out=", "--spill-dir=")):
            kept.append(word)
    return " ".join(kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measured = {
        "cpu": "the step on a CPU",
        "gpu": "the step on a GPU, and a training loop",
        "checkpoint": "saving and loading",
    }
    for name, what in measured.items():
        command = _measuring(commands, name, what)
        command.add_argument("--only", action="append", metavar="CASE", help="run this case only; may be repeated")
        command.add_argument(
            "--out", metavar="FOLDER", help="write results here; default: bench/results, not with --quick"
        )
        if name == "gpu":
            command.add_argument("--device", default="cuda", help="cuda or xpu; cpu with --quick rehearses every case")
    plan = _measuring(commands, "plan", "paged steps, and show what pagedopt.plan says of them")
    plan.add_argument("--device", default="cpu", help="cpu, cuda or xpu")
    table = commands.add_parser("table", help="make the tables of the documents from bench/results")
    table.add_argument("--check", action="store_true", help="change nothing; fail if a document is out of date")
    return parser


def _measuring(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    """Return the parser of a command that measures, with what all of them take."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=f"measure {what}")
    command.add_argument("--quick", action="store_true", help="tiny sizes, to test the bench: numbers mean nothing")
    command.add_argument("--threads", type=int, help="CPU threads; default: as many as torch takes, 1 with --quick")
    command.add_argument(
        "--spill-dir", default=tempfile.gettempdir(), metavar="FOLDER", help="on the disk to be measured"
    )
    return command


def _table(*, check: bool) -> int:
    from bench import report, results_file

    runs = results_file.load_all()
    stale = []
    for path in report.documents_with_blocks(ROOT):
        document = path.read_text()
        made = report.write_blocks(document, runs)
        if made != document:
            stale.append(path.name)
            if not check:
                path.write_text(made)
    if not stale:
        print("every table is up to date")
    else:
        print(f"{'out of date' if check else 'wrote'}: {', '.join(stale)}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
