"""One run: the cases of a device, shown and kept as they end, and written to a file at the end."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console

from bench import cases, checkpoint, gpu_cases, peers, report, results_file, transient
from bench.accelerator import Accelerator, CannotRunError, accelerator_for
from bench.machine import Machine, commit, this_machine, versions
from bench.measure import Case, Refusal, described
from bench.results_file import Contest, Results
from bench.transient import Transient

__all__ = ["Asked", "CannotRunError", "checkpoints", "cpu", "gpu"]

_PLAIN_WIDTH = 160
"""Columns of a log, where there is no terminal that says how many it has."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for.

    Attributes:
        command: what repeats this run.
        out: folder of the results; None: bench/results, but nothing of a quick run.
    """

    command: str
    quick: bool
    only: tuple[str, ...]
    spill_dir: Path
    out: Path | None


def cpu(asked: Asked) -> int:
    """Run the cases of a CPU."""
    _check_cases(asked.only, cases.CASES)
    device = torch.device("cpu")
    present, absent = peers.present(device, quick=asked.quick)
    run = _Run(asked, this_machine(), "cpu", absent)
    with run.console.status("") as status:
        options = cases.Options(asked.quick, asked.spill_dir, asked.only, status.update)
        run.take_cases(cases.contests(options, present))
        if options.wants("transient"):
            run.take_transients(cases.run_transients(options, present))
    return run.end()


def gpu(asked: Asked, device_name: str) -> int:
    """Run the cases of an accelerator.

    Raises:
        CannotRunError: there is none.
    """
    _check_cases(asked.only, gpu_cases.CASES)
    accelerator: Accelerator = accelerator_for(device_name, rehearse=asked.quick)
    present, absent = peers.present(accelerator.device, quick=asked.quick)
    run = _Run(asked, this_machine(accelerator.name), "gpu", absent)
    with run.console.status("") as status:
        options = cases.Options(asked.quick, asked.spill_dir, asked.only, status.update)
        run.take_cases(gpu_cases.contests(options, present, accelerator))
    return run.end()


def checkpoints(asked: Asked) -> int:
    """Run the cases of saving and loading."""
    _check_cases(asked.only, checkpoint.CASES)
    run = _Run(asked, this_machine(), "checkpoint", [])
    with run.console.status("") as status:
        options = cases.Options(asked.quick, asked.spill_dir, asked.only, status.update)
        run.take(checkpoint.run_contests(options))
    return run.end()


def _check_cases(only: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [case for case in only if case not in known]
    if unknown:
        raise CannotRunError(f"there is no case {unknown[0]!r}; known are {', '.join(known)}")


class _Run:
    """What is gathered while a run goes on."""

    def __init__(self, asked: Asked, machine: Machine, kind: str, absent: list[Refusal]) -> None:
        self.console = Console() if Console().is_terminal else Console(width=_PLAIN_WIDTH)
        self._asked = asked
        self._machine = machine
        self._kind = kind
        self._absent = absent
        self._load = os.getloadavg()[0] / machine.cores if hasattr(os, "getloadavg") else float("nan")
        self._date = datetime.now(timezone.utc).date().isoformat()
        self._contests: list[Contest] = []
        self._transients: list[Transient] = []
        self._broken: list[str] = []
        self.console.print(
            f"{machine.accelerator or machine.cpu}, {machine.threads} threads, load {self._load:.2g} a core"
        )
        report.show_refusals(absent, self.console)

    def take(self, contests: Iterable[Contest]) -> None:
        for contest in contests:
            report.show_contest(contest, self.console)
            self._contests.append(contest)
            if (folder := self._folder()) is not None:
                results_file.save_so_far(self._results(), folder)

    def take_cases(self, found: Iterable[Case[Contest]]) -> None:
        """Run each case; one that breaks is told of, and the others go on."""
        for case in found:
            self._take_case(case)

    def _take_case(self, case: Case[Contest]) -> None:
        try:
            self.take([case.run()])
        except Exception as error:  # noqa: BLE001 - what the others find stands
            traceback.print_exc()
            self._broken.append(case.name)
            self._refuse(Refusal(f"case {case.name}", f"broke: {described(error)}"))

    def _folder(self) -> Path | None:
        return self._asked.out or (None if self._asked.quick else results_file.FOLDER)

    def take_transients(self, found: Iterable[Transient | Refusal]) -> None:
        reason = transient.can_measure()
        if reason is not None:
            self._refuse(Refusal("transient memory", reason))
            return
        for transient_or_refusal in found:
            if isinstance(transient_or_refusal, Refusal):
                self._refuse(transient_or_refusal)
            else:
                self._transients.append(transient_or_refusal)

    def _refuse(self, refusal: Refusal) -> None:
        report.show_refusals([refusal], self.console)
        self._absent.append(refusal)

    def end(self) -> int:
        """Show what was found, write it, and return the exit status: 1 if a case broke or one of ours did not run."""
        found = self._results()
        report.show_summary(found, self.console)
        if (folder := self._folder()) is not None:
            self.console.print(f"wrote {results_file.save(found, folder).name}")
        ours = [r for contest in self._contests for r in contest.refusals if r.name.startswith(("pagedopt", "paged"))]
        return 1 if ours or self._broken else 0

    def _results(self) -> Results:
        return Results(
            kind=self._kind,
            command=self._asked.command,
            date=self._date,
            commit=commit(),
            load=self._load,
            machine=self._machine,
            versions=versions(),
            contests=tuple(self._contests),
            transients=tuple(self._transients),
            absent=tuple(self._absent),
        )
