"""Results that nobody measured."""

from __future__ import annotations

from typing import Any

from bench.machine import Machine
from bench.measure import EXACT, Refusal, Timing, Verdict
from bench.results_file import Contest, Results
from bench.transient import Transient

MACHINE = Machine("a-cpu-2-cores", "A CPU", 2, 2, ("avx2",), 1 << 34, "Linux 6.1", "3.11.0")


def timing(name: str, *samples: float, nbytes: float = 100.0, verdict: Verdict = EXACT, note: str = "") -> Timing:
    return Timing(name, nbytes, samples, verdict, "a version", note)


def contest(case: str, *timings: Timing, **changes: Any) -> Contest:
    given: dict[str, Any] = {
        "case": case,
        "title": "1000 values in one tensor",
        "numel": 1000,
        "baseline": "torch fused",
        "ceiling": "memory sum",
        "timings": timings,
        "refusals": (),
        "facts": {},
    }
    return Contest(**{**given, **changes})


def results(**changes: Any) -> Results:
    given: dict[str, Any] = {
        "kind": "cpu",
        "command": "python -m bench cpu",
        "date": "2026-01-01",
        "commit": "0123456789ab",
        "load": 0.5,
        "machine": MACHINE,
        "versions": {"pagedopt": "0.1.0", "torch": "2.13.0"},
        "contests": (
            contest(
                "one-float32",
                timing("torch fused", 0.2, 0.4, 0.2, nbytes=28_000.0),
                timing(
                    "pagedopt 8-bit", 0.1, 0.1, nbytes=16_000.0, verdict=Verdict(0.01, 0.03, "8-bit codes"), note="few"
                ),
                timing("memory sum", 0.1, 0.2, 0.1, nbytes=12_000.0),
                refusals=(Refusal("torchao 8-bit", "could not run: no compiler"),),
                facts={"paged 25 %: bytes a step moved": 1 << 20},
            ),
        ),
        "transients": (Transient("pagedopt 8-bit", "float32", ((1_000_000, 4096), (5_000_000, 4096))),),
        "absent": (Refusal("flashoptim 8-bit", "does not run on cpu"),),
    }
    return Results(**{**given, **changes})
