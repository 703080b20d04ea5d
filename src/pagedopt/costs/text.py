"""A cost plan for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pagedopt.units import format_bytes, format_count

if TYPE_CHECKING:
    from pagedopt.costs.planning import CostPlan, Gain
    from pagedopt.costs.prediction import Prediction
    from pagedopt.costs.rates import Rates

PHASES = {
    "construction": "when constructed",
    "first_step": "first step",
    "steady_step": "each later step",
    "save": "save",
    "load": "load",
}


_TOLD = {"torch": "torch {}", "backend": "{} backend", "folder": "spill file in {}", "page": "pages of {}"}
"""How what rates were measured on is told."""


def plan_as_json(plan: CostPlan) -> str:
    """Return all of `plan` as JSON."""
    return json.dumps(_plain(plan), indent=2)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def plan_as_text(plan: CostPlan) -> str:
    """Return `plan` as lines for people."""
    return "\n".join([*_heading(plan), "", *_places(plan), "", *_seconds(plan), *_rates(plan.rates)])


def _heading(plan: CostPlan) -> Iterator[str]:
    account = plan.account
    dtypes = "/".join(dict.fromkeys(values.dtype for values in account.values))
    kept = " and ".join(dict.fromkeys(values.state_format for values in account.values if values.count))
    yield f"{plan.optimizer} on {plan.device}, {_counted(plan.num_params, 'trained tensor')}"
    yield f"  parameters  {format_count(plan.num_values)} values, {dtypes}, {format_bytes(plan.params_nbytes)}"
    yield (
        f"  state       {format_bytes(account.state_nbytes)}, {kept}, "
        f"in {_counted(account.num_pages, 'page')} of {format_bytes(account.page_nbytes)}"
    )
    yield f"  budget      {_budget(plan)}"


def _budget(plan: CostPlan) -> str:
    account = plan.account
    if account.budget_nbytes is None:
        return f"{plan.budget_name} unlimited: every page is resident"
    smallest = format_bytes(plan.smallest_budget_nbytes)
    if plan.least_budget_nbytes < plan.smallest_budget_nbytes:
        smallest += f", with smaller and slower pages {format_bytes(plan.least_budget_nbytes)}"
    return (
        f"{plan.budget_name} {format_bytes(account.budget_nbytes)}{' (automatic)' if plan.is_automatic else ''}: "
        f"{account.num_frames} of {_counted(account.num_pages, 'page')} resident; the smallest that works is {smallest}"
    )


def _places(plan: CostPlan) -> Iterator[str]:
    on_accelerator = plan.device != "cpu"
    heads = ["", *(["GPU memory", "RAM"] if on_accelerator else ["RAM"]), "spill file", "read", "written"]
    rows = [heads]
    for name, called in PHASES.items():
        phase = getattr(plan.account, name)
        held = [phase.frame_nbytes, phase.ram_nbytes] if on_accelerator else [phase.ram_nbytes]
        moved = [sum(phase.read.values()), sum(phase.written.values())]
        rows.append([called, *map(format_bytes, [*held, phase.file_nbytes, *moved])])
    yield from _aligned(rows)
    yield f"  save also writes a checkpoint of {format_bytes(plan.account.checkpoint_nbytes)}, load reads it"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  " + "  ".join(cells).rstrip()


def _seconds(plan: CostPlan) -> Iterator[str]:
    prediction = plan.prediction
    if prediction is None:
        yield f"how long a step takes is not known: {plan.unpredicted}"
    else:
        yield f"a step takes {format_seconds(prediction.seconds)}; what binds is {_terms(prediction)}"
    written = plan.written_per_thousand_steps
    yield f"1000 steps write {format_bytes(written)} to the disk" if written else "steps write nothing to the disk"
    for gain in plan.gains:
        yield f"one more GiB of {gain.budget}: {_bought(gain)}"


def _terms(prediction: Prediction) -> str:
    ordered = sorted(prediction.terms.items(), key=lambda term: -term[1])
    return f"{prediction.binds} (" + ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in ordered) + ")"


def _bought(gain: Gain) -> str:
    if gain.moved_nbytes:
        of_disk = f", {format_bytes(gain.disk_nbytes)} of them on the disk" if gain.disk_nbytes else ""
        bought = f"a step moves {format_bytes(gain.moved_nbytes)} less{of_disk}"
    else:
        bought = f"{format_bytes(gain.disk_nbytes)} of a step's traffic go to RAM and not to the disk"
    return bought if gain.seconds is None else f"{bought}, and takes {format_seconds(max(gain.seconds, 0.0))} less"


def _rates(rates: Rates | None) -> Iterator[str]:
    if rates is None:
        return
    spoken = [f"{name.replace('_', ' ')} {rate / 1e9:.3g} GB/s" for name, rate in rates.bytes_per_second.items()]
    spoken += [f"{name} {rate / 1e9:.3g} G values/s" for name, rate in rates.values_per_second.items()]
    if rates.overlap is not None:
        spoken.append(f"overlap {rates.overlap:.0%}")
    yield "rates: " + ", ".join(spoken)
    if rates.machine:
        told = [_TOLD.get(name, "{}").format(value) for name, value in rates.machine.items() if name != "disk"]
        yield "of: " + "; ".join(told)


def format_seconds(seconds: float) -> str:
    """Return `seconds` to three digits with the unit that suits them: `"1.5 s"`, `"20 ms"`, `"2.5 min"`."""
    if seconds >= 120:
        return f"{seconds / 60:.3g} min"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
