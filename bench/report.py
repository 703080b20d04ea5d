"""Tables of results: for the terminal while a run goes on, and in Markdown for the documents, from the files alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.bars import Bar, bars_of
from bench.measure import Refusal, Spread, Timing, spread
from bench.results_file import Contest, Results, gb_per_second
from bench.transient import Transient
from pagedopt.units import format_bytes

BLOCK = re.compile(r"(<!-- bench: (?P<name>\w+) -->\n).*?(<!-- bench: end -->)", re.DOTALL)
"""What `write_blocks` fills: `<!-- bench: bars -->` or `<!-- bench: rows -->`, up to `<!-- bench: end -->`."""

_BAR_HEAD = ("what must be reached", "bar", "aim", "measured", "quartiles", "n", "")
_TRANSIENT_HEAD = ("memory that a step takes and gives back", "bytes a value", "at the smaller size", "at the larger")


def _ratio(found: Spread | None) -> str:
    return "" if found is None else f"{found.median:.3g}"


def _quartiles(found: Spread | None) -> str:
    return "" if found is None else f"{found.low:.3g} .. {found.high:.3g}"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def contest_head(contest: Contest) -> tuple[str, ...]:
    """Return the column titles of a contest's table: rates and shares only where there is a ceiling."""
    per_value = ("s / 10⁹ values",) if contest.numel else ()
    rates = ("GB/s", f"of {contest.ceiling}") if contest.ceiling else ()
    return ("", "step", *per_value, *rates, f"time / {contest.baseline}", "quartiles", "n")


def contest_row(contest: Contest, timing: Timing) -> tuple[str, ...]:
    """Return the cells of one candidate."""
    seconds = spread(timing.samples).median
    per_value = (_per_value(contest, timing, seconds),) if contest.numel else ()
    rate = f"{gb_per_second(timing):.3g}" if timing.nbytes else ""
    rates = (rate, _ratio(contest.share(timing.name))) if contest.ceiling else ()
    ratio = contest.time_ratio(timing.name, contest.baseline)
    detail = "; ".join(filter(None, (timing.runs, timing.note)))
    return (
        f"{timing.name} ({detail})" if detail else timing.name,
        _seconds(seconds),
        *per_value,
        *rates,
        _ratio(ratio),
        _quartiles(ratio),
        str(len(timing.samples)),
    )


def _per_value(contest: Contest, timing: Timing, seconds: float) -> str:
    is_probe = timing.name.startswith(("memory", "disk", "copy"))
    return "" if is_probe else f"{seconds / contest.numel * 1e9:.3g}"


def bar_row(bar: Bar, found: Spread | None) -> tuple[str, ...]:
    """Return the cells of one line of what must be reached."""
    sign = "≥" if bar.at_least else "≤"
    limits = (bar.text, f"{sign} {bar.bar:g}", f"{bar.aim:g}")
    if found is None:
        return (*limits, "not measured", "", "", "")
    judgement = "aim" if bar.is_aim_met_by(found) else "bar" if bar.is_met_by(found) else "missed"
    if judgement == "missed" and bar.bar:
        judgement = f"missed by {bar.missed_by(found):.0%}"
    return (*limits, _ratio(found), _quartiles(found), str(found.n), judgement)


def transient_row(transient: Transient) -> tuple[str, ...]:
    """Return the cells of one optimizer's transient memory."""
    (few, small), (many, large) = transient.nbytes
    sizes = (f"{format_bytes(small)} for {few / 1e6:g}M", f"{format_bytes(large)} for {many / 1e6:g}M")
    return (f"{transient.name}, {transient.dtype}", f"{abs(round(transient.nbytes_per_value, 2)):.2f}", *sizes)


def fact_cell(name: str, value: float) -> str:
    """Return a counted number with its name, bytes in a unit for people."""
    return f"{name}: {format_bytes(value) if 'bytes' in name else f'{value:.4g}'}"


# -- terminal ----------------------------------------------------------------------------------------------------------


def show_contest(contest: Contest, console: Console) -> None:
    """Print one contest."""
    console.print(_table(contest_head(contest), [contest_row(contest, t) for t in contest.timings], contest.title))
    show_refusals(contest.refusals, console)
    for name, value in contest.facts.items():
        console.print(f"  {fact_cell(name, value)}", highlight=False)


def show_refusals(refusals: Iterable[Refusal], console: Console) -> None:
    """Print who was not timed, and why."""
    for refusal in refusals:
        console.print(f"  [bold]{refusal.name}[/bold]: {refusal.reason}", highlight=False)


def show_summary(results: Results, console: Console) -> None:
    """Print what needs the whole run: transient memory, and what must be reached."""
    if results.transients:
        console.print(_table(_TRANSIENT_HEAD, [transient_row(transient) for transient in results.transients]))
    if results.is_quick:
        console.print("a quick run: its numbers mean nothing")
        return
    console.print(_table(_BAR_HEAD, [bar_row(bar, found) for bar, found in bars_of(results)]))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


# -- Markdown ----------------------------------------------------------------------------------------------------------


def write_blocks(document: str, results: Sequence[Results]) -> str:
    """Return `document` with every block between markers made anew.

    Raises:
        ValueError: a marker asks for a block that there is not.
    """

    def block(match: re.Match[str]) -> str:
        makers = {"bars": bars_block, "rows": rows_block, "steps": steps_block}
        if match["name"] not in makers:
            raise ValueError(f"there is no block {match['name']!r}; known are {', '.join(makers)}")
        return f"{match[1]}\n{makers[match['name']](results)}\n{match[3]}"

    return BLOCK.sub(block, document)


def documents_with_blocks(root: Path) -> list[Path]:
    """Return the Markdown files of the repository that have blocks."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("bench/*.md")]
    return sorted(path for path in found if BLOCK.search(path.read_text()))


def bars_block(results: Sequence[Results]) -> str:
    """Return what must be reached and what was, a table for each machine."""
    return "\n".join(
        f"{_heading(run)}\n{_markdown(_BAR_HEAD, [bar_row(bar, found) for bar, found in bars_of(run)])}"
        for run in results
    )


def steps_block(results: Sequence[Results]) -> str:
    """Return what the bars of steps ask for and what was measured, of all machines in one short table."""
    rows = [
        bar_row(bar, found)
        for run in results
        if run.kind in ("cpu", "gpu")
        for bar, found in bars_of(run)
        if found is not None
    ]
    columns = [_BAR_HEAD.index(name) for name in ("what must be reached", "bar", "measured", "")]
    head, *body = [[row[column] for column in columns] for row in (_BAR_HEAD, *rows)]
    return _markdown(head, body)


def rows_block(results: Sequence[Results]) -> str:
    """Return every row of every machine."""
    return "\n".join("\n".join([_heading(run), *_parts(run)]) for run in results)


def _parts(run: Results) -> Iterable[str]:
    for contest in run.contests:
        rows = [contest_row(contest, timing) for timing in contest.timings]
        yield f"{_markdown(contest_head(contest), rows, contest.title)}{_notes(contest)}"
    if run.transients:
        yield _markdown(_TRANSIENT_HEAD, [transient_row(transient) for transient in run.transients])
    if run.absent:
        yield "Not timed: " + "; ".join(f"{absent.name}: {absent.reason}" for absent in run.absent) + ".\n"


def _notes(contest: Contest) -> str:
    refused = [f"- {refusal.name}: {refusal.reason}" for refusal in contest.refusals]
    notes = refused + [f"- {fact_cell(name, value)}" for name, value in contest.facts.items()]
    return "\n" + "\n".join(notes) + "\n" if notes else ""


def _heading(run: Results) -> str:
    machine = run.machine
    device = machine.accelerator or f"{machine.cpu}, {machine.threads} threads on {machine.cores} cores"
    packages = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return (
        f"**{device}** ({machine.system}, Python {machine.python}; {packages}), commit {run.commit}, {run.date}, "
        f"load {run.load:.2g} a core: `{run.command}`\n"
    )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    head = (title or head[0], *head[1:])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
