"""Seconds of a step, from what it moves and what the machine can do.

Pages flow through stages that work at the same time: while one page is updated, others are read and written. So a step
takes as long as its slowest stage, and once more what the other stages take for a single page, the first or the last:

    seconds = max(terms) + (sum(terms) - max(terms)) / pages that move

On a CPU one thing more takes time: update and disk want the same processors and the same memory, and the longer of
the two hides only a part of the shorter, which was measured. What it does not hide is the last term, and is added.

| term        | bytes or values                                | rate                                        |
|-------------|------------------------------------------------|---------------------------------------------|
| compute     | values; and for each page, each parameter      | `values_per_second`, `seconds`              |
| disk        | read and written                               | `disk_both`; one way: that way's            |
| host memory | read and written, as each passes through RAM   | `host`                                      |
| device copy | to an accelerator and from it, at the same time | the slower of `up` and `down`              |
| sharing     | seconds: the lesser of compute and disk        | what is left of 1 beside `overlap`          |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pagedopt.costs.rates import Rates
from pagedopt.costs.rehearsal import Account

COMPUTE, DISK, HOST, DEVICE, SHARING = "compute", "disk", "host memory", "device copy", "sharing"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a step moves: from and to each tier."""

    host_read: float
    host_written: float
    disk_read: float
    disk_written: float

    @classmethod
    def of(cls, account: Account) -> Traffic:
        """Return the traffic of a steady step."""
        read, written = account.steady_step.read, account.steady_step.written
        return cls(read["host"], written["host"], read["disk"], written["disk"])

    @property
    def nbytes(self) -> float:
        return self.host_read + self.host_written + self.disk_read + self.disk_written

    def less(self, nbytes: float) -> Traffic:
        """Return what is left if `nbytes` more stay in frames: as much less each way, from both tiers alike."""
        kept = self._share_left(self.host_read + self.disk_read, nbytes)
        saved = self._share_left(self.host_written + self.disk_written, nbytes)
        return Traffic(
            self.host_read * kept, self.host_written * saved, self.disk_read * kept, self.disk_written * saved
        )

    def off_disk(self, share: float) -> Traffic:
        """Return the traffic if this share of the pages on disk were in RAM."""
        read, written = self.disk_read * share, self.disk_written * share
        return Traffic(
            self.host_read + read, self.host_written + written, self.disk_read - read, self.disk_written - written
        )

    @staticmethod
    def _share_left(moved: float, nbytes: float) -> float:
        return max(1 - nbytes / moved, 0.0) if moved else 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a step.

    Attributes:
        seconds: of the whole step.
        terms: seconds that each would take alone; of sharing, those that it adds.
        binds: the term that the others wait for: the largest.
    """

    seconds: float
    terms: Mapping[str, float]
    binds: str


def predict(account: Account, rates: Rates, traffic: Traffic, *, num_params: int, on_accelerator: bool) -> Prediction:
    """Return the seconds of a step that moves `traffic`.

    Args:
        account: of the optimizer.
        rates: of the machine.
        traffic: usually `Traffic.of(account)`.
        num_params: parameters that have gradients.
        on_accelerator: whether frames are there.

    Raises:
        RatesError: a rate that is needed is missing.
    """
    pages = traffic.nbytes / 2 / account.page_nbytes
    terms = {COMPUTE: _compute(account, rates, num_params, pages)}
    if traffic.disk_read or traffic.disk_written:
        terms[DISK] = _disk(traffic, rates)
    if traffic.nbytes:
        terms[HOST] = traffic.nbytes / rates.of_bytes("host")
    if on_accelerator and traffic.nbytes:
        terms[DEVICE] = max(
            (traffic.host_read + traffic.disk_read) / rates.of_bytes("up"),
            (traffic.host_written + traffic.disk_written) / rates.of_bytes("down"),
        )
    binds = max(terms, key=lambda name: terms[name])
    others = sum(terms.values()) - terms[binds]
    seconds = terms[binds] + others / max(pages, 1.0)
    if DISK in terms and not on_accelerator and rates.overlap is not None:
        terms[SHARING] = min(terms[COMPUTE], terms[DISK]) * (1 - rates.overlap)
        seconds += terms[SHARING]
    return Prediction(seconds, terms, binds)


def _compute(account: Account, rates: Rates, num_params: int, pages: float) -> float:
    update = sum(values.count / rates.of_values(values.state_format, values.dtype) for values in account.values)
    return update + num_params * rates.of_seconds("parameter") + pages * rates.of_seconds("page")


def _disk(traffic: Traffic, rates: Rates) -> float:
    """Return seconds: as much as goes both ways goes at once, the rest in one direction."""
    both = min(traffic.disk_read, traffic.disk_written)
    seconds = 2 * both / rates.of_bytes("disk_both") if both else 0.0
    if traffic.disk_read > both:
        seconds += (traffic.disk_read - both) / rates.of_bytes("disk_read")
    if traffic.disk_written > both:
        seconds += (traffic.disk_written - both) / rates.of_bytes("disk_write")
    return seconds
