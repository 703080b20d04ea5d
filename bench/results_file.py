"""What a run of the bench found, and its file: bench/results/<machine>.json, or <machine>-checkpoint.json.

A row keeps all its samples; medians, rates and ratios in the file are computed from those and stand there for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.bars import bars_to_json
from bench.machine import Machine
from bench.measure import Refusal, Spread, Timing, Verdict, rate_ratio, spread, time_ratio
from bench.transient import Transient

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Contest:
    """Candidates that were timed by turns.

    Attributes:
        case: its short name, as `--only` takes it; title: what it is, with its sizes.
        numel: values that one step updates; 0 where steps are no updates.
        baseline: the timing that times are compared with; ceiling: the probe that rates are compared with.
        facts: what was counted beside, by name.
    """

    case: str
    title: str
    numel: int
    baseline: str
    ceiling: str
    timings: tuple[Timing, ...]
    refusals: tuple[Refusal, ...]
    facts: Mapping[str, float]

    def timing(self, name: str) -> Timing | None:
        """Return the timing of a candidate, None if it was not timed."""
        return next((timing for timing in self.timings if timing.name == name), None)

    def time_ratio(self, name: str, baseline: str) -> Spread | None:
        """Return the time of one candidate over another's."""
        timing, other = self.timing(name), self.timing(baseline)
        return None if timing is None or other is None else time_ratio(timing, other)

    def share(self, name: str) -> Spread | None:
        """Return a candidate's bytes per second over the ceiling's; None if it need not move any, or was not timed."""
        timing, ceiling = self.timing(name), self.timing(self.ceiling)
        if timing is None or ceiling is None or not timing.nbytes:
            return None
        return rate_ratio(timing, ceiling)


@dataclass(frozen=True, slots=True)
class Results:
    """One run.

    Attributes:
        kind: `cpu`, `gpu` or `checkpoint`; command: what repeats it; date: in UTC.
        load: of the machine, tasks a core, at the start.
        absent: who did not take part at all, and why.
    """

    kind: str
    command: str
    date: str
    commit: str
    load: float
    machine: Machine
    versions: Mapping[str, str]
    contests: tuple[Contest, ...]
    transients: tuple[Transient, ...]
    absent: tuple[Refusal, ...]

    def contest(self, case: str) -> Contest | None:
        """Return the contest of a case, None if it was not run."""
        return next((contest for contest in self.contests if contest.case == case), None)

    @property
    def is_quick(self) -> bool:
        """Whether its numbers mean nothing."""
        return "--quick" in self.command


def gb_per_second(timing: Timing) -> float:
    """Return the median rate in 10^9 bytes per second."""
    return timing.nbytes / spread(timing.samples).median / 1e9


def to_json(results: Results) -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "schema": SCHEMA,
        "kind": results.kind,
        "command": results.command,
        "date": results.date,
        "commit": results.commit,
        "load": results.load,
        "machine": {**asdict(results.machine), "isa": list(results.machine.isa)},
        "versions": dict(results.versions),
        "bars": bars_to_json(results),
        "contests": [_contest_to_json(contest) for contest in results.contests],
        "transients": [_transient_to_json(transient) for transient in results.transients],
        "absent": [asdict(refusal) for refusal in results.absent],
    }


def _contest_to_json(contest: Contest) -> dict[str, Any]:
    return {
        "case": contest.case,
        "title": contest.title,
        "numel": contest.numel,
        "baseline": contest.baseline,
        "ceiling": contest.ceiling,
        "rows": [_row(contest, timing) for timing in contest.timings],
        "refusals": [asdict(refusal) for refusal in contest.refusals],
        "facts": dict(contest.facts),
    }


def _row(contest: Contest, timing: Timing) -> dict[str, Any]:
    ratio, share = contest.time_ratio(timing.name, contest.baseline), contest.share(timing.name)
    return {
        "name": timing.name,
        "runs": timing.runs,
        "note": timing.note,
        "n": len(timing.samples),
        "seconds": spread(timing.samples).median,
        "gb_per_second": gb_per_second(timing),
        "time_over_baseline": None if ratio is None else asdict(ratio),
        "rate_over_ceiling": None if share is None else asdict(share),
        "nbytes": timing.nbytes,
        "verdict": asdict(timing.verdict),
        "samples": list(timing.samples),
    }


def _transient_to_json(transient: Transient) -> dict[str, Any]:
    return {
        "name": transient.name,
        "dtype": transient.dtype,
        "nbytes_per_value": transient.nbytes_per_value,
        "nbytes": [list(pair) for pair in transient.nbytes],
    }


def from_json(content: Mapping[str, Any]) -> Results:
    """Return what `to_json` made a file of.

    Raises:
        ValueError: the file is of another schema.
    """
    if content.get("schema") != SCHEMA:
        raise ValueError(f"results have schema {content.get('schema')}, this bench reads {SCHEMA}; run it again")
    return Results(
        kind=content["kind"],
        command=content["command"],
        date=content["date"],
        commit=content["commit"],
        load=content["load"],
        machine=Machine(**{**content["machine"], "isa": tuple(content["machine"]["isa"])}),
        versions=content["versions"],
        contests=tuple(_contest_from_json(contest) for contest in content["contests"]),
        transients=tuple(
            Transient(found["name"], found["dtype"], tuple(tuple(pair) for pair in found["nbytes"]))  # type: ignore[arg-type]
            for found in content["transients"]
        ),
        absent=tuple(Refusal(**refusal) for refusal in content["absent"]),
    )


def _contest_from_json(content: Mapping[str, Any]) -> Contest:
    return Contest(
        case=content["case"],
        title=content["title"],
        numel=content["numel"],
        baseline=content["baseline"],
        ceiling=content["ceiling"],
        timings=tuple(
            Timing(
                row["name"], row["nbytes"], tuple(row["samples"]), Verdict(**row["verdict"]), row["runs"], row["note"]
            )
            for row in content["rows"]
        ),
        refusals=tuple(Refusal(**refusal) for refusal in content["refusals"]),
        facts=content["facts"],
    )


def save(results: Results, folder: Path = FOLDER) -> Path:
    """Write the file of the machine and kind and return where."""
    path = _path(results, folder)
    path.write_text(json.dumps(to_json(results), indent=1) + "\n")
    _so_far(path).unlink(missing_ok=True)
    return path


def save_so_far(results: Results, folder: Path = FOLDER) -> None:
    """Keep what a run has found beside the file that it writes at its end, for one that is cut short."""
    _so_far(_path(results, folder)).write_text(json.dumps(to_json(results), indent=1) + "\n")


def _path(results: Results, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind = "-checkpoint" if results.kind == "checkpoint" else ""  # a CPU's and a GPU's have names of their own
    return folder / f"{results.machine.name}{kind}.json"


def _so_far(path: Path) -> Path:
    return path.with_suffix(".so-far")


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    return from_json(json.loads(path.read_text()))


def load_all(folder: Path = FOLDER) -> list[Results]:
    """Read every file of `folder`: those of CPUs, of GPUs, of checkpoints."""
    order = ("cpu", "gpu", "checkpoint")
    return sorted(map(load, sorted(folder.glob("*.json"))), key=lambda results: order.index(results.kind))
