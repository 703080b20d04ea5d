"""All examinations, in the order in which people read them. One that fails is itself a finding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pagedopt.doctor import hardware, software, speed, spilling
from pagedopt.doctor.check import Check


@dataclass(frozen=True, slots=True)
class Options:
    """What to examine.

    Attributes:
        spill_dir: the folder that pages would go to; None: the system's temporary folder.
        with_rates: whether to measure rates, which takes some seconds and writes some hundred MB to that folder.
        say: is told what is being measured.
    """

    spill_dir: Path | None = None
    with_rates: bool = True
    say: Callable[[str], object] = lambda _: None

    @property
    def folder(self) -> Path:
        return self.spill_dir or Path(tempfile.gettempdir())


def diagnose(options: Options | None = None) -> list[Check]:
    """Return what every examination found."""
    return [check for name, examine in _examinations(options or Options()) for check in _found(name, examine)]


def _examinations(options: Options) -> Iterator[tuple[str, Callable[[], Iterable[Check]]]]:
    device = hardware.accelerator()
    yield "python", software.python
    yield "torch", software.torch_itself
    yield "native kernels", software.native_kernels
    yield "triton", partial(software.triton, has_accelerator=device is not None)
    yield "backend", partial(software.backend_in_use, device or torch.device("cpu"))
    yield "accelerator", partial(hardware.accelerator_found, device)
    yield "pinned memory", partial(hardware.pinned_memory, device)
    yield "threads", hardware.threads
    yield "RAM", hardware.ram
    yield "spill folder", partial(spilling.folder, options.folder)
    if options.with_rates:
        yield "rates", partial(speed.rates, device or torch.device("cpu"), options.folder, options.say)
    yield "packages", software.packages


def _found(name: str, examine: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(examine())
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here is what the user came to learn
        reason = (str(error).splitlines() or ["no reason given"])[0]
        return [Check(name, "broken", f"could not be examined: {type(error).__name__}: {reason}")]
