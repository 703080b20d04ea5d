"""What must be reached: a bar for each case, an aim beyond it, and how what was measured compares.

All are ratios or shares of one run, so they hold from machine to machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.measure import Spread, spread

if TYPE_CHECKING:
    from bench.results_file import Results

Measure: TypeAlias = "Callable[[Results], Spread | None]"


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of what must be reached.

    Attributes:
        text: what is compared with what.
        measure: finds it in results; None: not measured.
        at_least: whether more is better.
    """

    kind: str
    text: str
    measure: Measure
    bar: float
    aim: float
    at_least: bool = False

    def is_met_by(self, found: Spread) -> bool:
        return found.median >= self.bar if self.at_least else found.median <= self.bar

    def is_aim_met_by(self, found: Spread) -> bool:
        return found.median >= self.aim if self.at_least else found.median <= self.aim

    def missed_by(self, found: Spread) -> float:
        """Return how far the median is on the wrong side, as a share of the bar."""
        return (self.bar - found.median if self.at_least else found.median - self.bar) / (self.bar or 1.0)


def _time(case: str, name: str, baseline: str) -> Measure:
    def measure(results: Results) -> Spread | None:
        contest = results.contest(case)
        return None if contest is None else contest.time_ratio(name, baseline)

    return measure


def _share(case: str, name: str) -> Measure:
    def measure(results: Results) -> Spread | None:
        contest = results.contest(case)
        return None if contest is None else contest.share(name)

    return measure


def _transient(*names: str) -> Measure:
    def measure(results: Results) -> Spread | None:
        # A slope is measured to the pages that threads keep back: 0.01 byte a value is none.
        found = [round(taken.nbytes_per_value, 2) for taken in results.transients if taken.name in names]
        return spread([max(found)]) if found else None

    return measure


OURS = "pagedopt 8-bit"
OURS_32 = "pagedopt 32-bit"
FUSED = "torch fused"
BNB = "bitsandbytes 8-bit"
BNB_PAGED = "bitsandbytes paged, cold"
PAGED_0, PAGED_25 = "paged 0 %", "paged 25 %"
SAVE, LOAD = "pagedopt.save", "pagedopt.load"

BARS = (
    Bar("cpu", "8-bit, float32, 50M: time / torch fused 32-bit", _time("one-float32", OURS, FUSED), 1.0, 0.65),
    Bar("cpu", "8-bit, bfloat16, 50M: time / torch fused bfloat16", _time("one-bfloat16", OURS, FUSED), 1.0, 0.45),
    Bar("cpu", "32-bit, float32, 50M: time / torch fused", _time("one-float32", OURS_32, FUSED), 1.05, 1.0),
    Bar("cpu", "8-bit, 500 of 64x64: time / torch fused", _time("many-float32", OURS, FUSED), 0.7, 0.3),
    Bar("cpu", "32-bit, 500 of 64x64: time / torch fused", _time("many-float32", OURS_32, FUSED), 0.7, 0.3),
    Bar("cpu", "8-bit, float32, 50M: bitsandbytes' time / ours", _time("one-float32", BNB, OURS), 15, 30, True),
    Bar("cpu", "paged, a quarter in RAM: of the disk's raw speed", _share("paged", PAGED_25), 0.8, 0.95, True),
    Bar("cpu", "transient memory of a step, bytes a value", _transient(OURS, OURS_32), 0.0, 0.0),
    Bar("gpu", "resident 8-bit: of the device's bandwidth", _share("resident-bfloat16", OURS), 0.75, 0.9, True),
    Bar("gpu", "resident 8-bit: bitsandbytes' time / ours", _time("resident-bfloat16", BNB, OURS), 1.0, 1.3, True),
    Bar("gpu", "paged, nothing resident: of the two-way copy", _share("paged", PAGED_0), 0.8, 0.95, True),
    Bar("gpu", "paged: bitsandbytes' time / ours, both cold", _time("paged", BNB_PAGED, PAGED_0), 2, 5, True),
    Bar("gpu", "training step of a 1B model: paged / resident", _time("train", PAGED_0, "resident"), 1.10, 1.02),
    Bar("gpu", "8-bit, 500 LoRA-sized: time / torch fused", _time("many-bfloat16", OURS, FUSED), 1.0, 0.5),
    *(
        Bar("checkpoint", f"{verb}, {what}: of the disk's raw speed", _share(f"{verb}-{case}", name), 0.8, 0.95, True)
        for case, what in (
            ("32-bit", "32-bit state in RAM"),
            ("8-bit", "8-bit state in RAM"),
            ("32-bit-spilled", "32-bit state in a spill file"),
            ("8-bit-spilled", "8-bit state in a spill file"),
        )
        for verb, name in (("save", SAVE), ("load", LOAD))
    ),
)


def bars_of(results: Results) -> list[tuple[Bar, Spread | None]]:
    """Return the bars of this kind of run and what it measured."""
    return [(bar, bar.measure(results)) for bar in BARS if bar.kind == results.kind]


def bars_to_json(results: Results) -> list[dict[str, Any]]:
    """Return the bars of this kind of run with what it measured, for a file that draws them without the bench."""
    return [
        {
            "text": bar.text,
            "bar": bar.bar,
            "aim": bar.aim,
            "at_least": bar.at_least,
            "measured": None if found is None else asdict(found),
        }
        for bar, found in bars_of(results)
    ]
