"""A file of results of the bench (`bench/results/<machine>.json`) as what its picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROBES = ("memory ", "disk ", "copy ")
"""Rows of these names move bytes and update nothing."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of one candidate over the baseline's: median and quartiles."""

    name: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidates that were timed by turns, as ratios to `baseline`."""

    title: str
    baseline: str
    ratios: Sequence[Ratio]


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that must be reached: a bar, an aim beyond it, and what was measured; `at_least`: more is better."""

    text: str
    bar: float
    aim: float
    at_least: bool
    measured: Ratio


@dataclass(frozen=True, slots=True)
class ResultsContent:
    """What one run of the bench found.

    Attributes:
        machine: its name in the file; described: what it is, for people.
    """

    machine: str
    described: str
    comparisons: Sequence[Comparison]
    limits: Sequence[Limit]


def read_results(content: Mapping[str, Any]) -> ResultsContent:
    """Return what a file of results says.

    Raises:
        ValueError: it is no file of results that this version reads.
    """
    if "schema" not in content:
        raise ValueError("it is neither a trace nor results of the bench; pass a file that one of them wrote")
    if content["schema"] != 1:
        raise ValueError(f"results have schema {content['schema']}, this version draws 1; run the bench again")
    try:
        machine = content["machine"]
        where = machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"
        return ResultsContent(
            machine=machine["name"],
            described=f"{where}, {content['date']}, commit {content['commit']}: {content['command']}",
            comparisons=[found for contest in content["contests"] if (found := _comparison(contest)).ratios],
            limits=[_limit(bar) for bar in content.get("bars", ()) if bar["measured"] is not None],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"these are no results of the bench ({type(error).__name__}: {error})") from error


def _comparison(contest: Mapping[str, Any]) -> Comparison:
    rows = [row for row in contest["rows"] if row["time_over_baseline"] and not row["name"].startswith(PROBES)]
    ratios = [_ratio(row["name"], row["time_over_baseline"]) for row in rows]
    return Comparison(contest["title"], contest["baseline"], ratios)


def _limit(bar: Mapping[str, Any]) -> Limit:
    return Limit(bar["text"], bar["bar"], bar["aim"], bar["at_least"], _ratio(bar["text"], bar["measured"]))


def _ratio(name: str, spread: Mapping[str, float]) -> Ratio:
    return Ratio(name, spread["median"], spread["low"], spread["high"])
