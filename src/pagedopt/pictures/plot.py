"""`plot`: from a file, a trace or results of the bench, to its pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedopt.errors import PagedOptError
from pagedopt.pictures.results_read import ResultsContent, read_results
from pagedopt.pictures.trace_read import TraceContent, read_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def plot(
    *sources: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw what a trace or a file of bench results says, and return the pictures' files.

    pagedopt.plot("trace.json") writes `trace-pages`, where each page was in the last steps; `trace-bytes`, where the
    bytes of the state were over time; and `trace-time`, what the time of steps was spent on: each as PNG and SVG, and
    readable in black and white. pagedopt.plot("bench/results/machine.json") writes `machine-ratios` and, where the file
    has bars, `machine-bars`.

    Args:
        sources: files that `pagedopt.trace` or `python -m bench` wrote.
        out: the folder of the pictures, which is made; None: that of each source.
        formats: endings of the files, of those that matplotlib writes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a source is neither, says nothing to draw, or has the name of one before it; pictures of the sources
            before it are written.
        OSError: a file cannot be read or written.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError('pictures need matplotlib; pip install "pagedopt[plot]"', name="matplotlib")
    from pagedopt.pictures.style import save

    written: list[Path] = []
    for source in map(Path, sources):
        folder = source.parent if out is None else Path(out)
        for name, figure in _figures(source):
            if any(path.with_suffix("") == folder / name for path in written):
                raise ValueError(f"{source} has the name of another source; draw it into another folder")
            folder.mkdir(parents=True, exist_ok=True)
            written += save(figure, folder / name, formats)
    return written


class UnreadableError(PagedOptError, ValueError):
    """A file is neither a trace nor results of the bench."""


def _figures(source: Path) -> Iterator[tuple[str, Figure]]:
    content = _content(source)
    try:
        if isinstance(content, list):
            yield from _of_trace(source.stem, read_trace(content))
        else:
            yield from _of_results(source.stem, read_results(content))
    except ValueError as error:
        raise UnreadableError(f"{source}: {error}") from error


def _content(source: Path) -> list[Mapping[str, Any]] | Mapping[str, Any]:
    """Return what the file holds; of a trace that was cut off, what is whole."""
    try:
        text = source.read_text(encoding="utf-8")
    except ValueError as error:
        raise UnreadableError(f"{source} is no text: {error}") from error
    try:
        content = json.loads(text)
    except ValueError:
        content = _cut_off(text)
    if not isinstance(content, (list, dict)):
        raise UnreadableError(
            f"{source} is neither a trace nor results of the bench; pass a file that one of them wrote"
        )
    return content


def _cut_off(text: str) -> object:
    """Return the events of a trace whose process was killed, None if this is none: it has a line for each."""
    if not text.startswith("[\n"):
        return None
    whole = text[2 : text.rfind(",\n")]  # the last line may be half a line
    try:
        return json.loads(f"[{whole}]")
    except ValueError:
        return None


def _of_trace(stem: str, trace: TraceContent) -> Iterator[tuple[str, Figure]]:
    from pagedopt.pictures.bytes import draw_bytes
    from pagedopt.pictures.pages import draw_residency
    from pagedopt.pictures.times import draw_times

    for device in trace.devices:
        of = "" if len(trace.devices) == 1 else "-" + "".join(c if c.isalnum() else "_" for c in device.device)
        if device.pages is not None:
            pages = draw_residency(
                device.pages, page_nbytes=device.page_nbytes, first_step=device.first_step, sampled=device.sampled
            )
            yield f"{stem}-pages{of}", pages
        if device.state:
            yield f"{stem}-bytes{of}", draw_bytes(device)
    if trace.steps:
        yield f"{stem}-time", draw_times(trace.steps)
    elif not any(device.state for device in trace.devices):
        raise ValueError("nothing happened while it was traced: there is nothing to draw")


def _of_results(stem: str, results: ResultsContent) -> Iterator[tuple[str, Figure]]:
    from pagedopt.pictures.ratios import draw_limits, draw_ratios

    if not results.comparisons:
        raise ValueError("no candidate was timed against a baseline: there is nothing to draw")
    yield f"{stem}-ratios", draw_ratios(results)
    if any(limit.bar for limit in results.limits):
        yield f"{stem}-bars", draw_limits(results)
