"""Measures a machine's rates with the code that trains: its pages, its requests, its kernels. Takes a few seconds.

disk        a pager sweeps pages that do not fit: written once, then read, then both, with nothing to compute
update      a resident optimizer steps, once for each format and dtype that is asked for
overlap     a paged optimizer steps, beside its sweep with nothing to compute and its twin that is resident
up, down    page-sized copies between pinned RAM and the accelerator
bookkeeping what is left when there is almost nothing to update: for each page, and for each parameter
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pagedopt.codecs.base import StateFormat
from pagedopt.costs.empty import EmptyPager
from pagedopt.costs.rates import Rates, cached_rates, keep_rates
from pagedopt.costs.weights import DTYPES
from pagedopt.kernels.select import backends, kernel_for
from pagedopt.optim.adamw import AdamW
from pagedopt.paging.budget import Ledger
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.device import DevicePager
from pagedopt.paging.pager import Pager, cpu_pager
from pagedopt.paging.sweep import sweep
from pagedopt.tiers.buffers import new_host_buffer

_DISK_NBYTES = 192 << 20
_DISK_PAGES = 512
"""Moved in each pass over the disk, at most: enough that its start and end do not count."""

_HOST_NBYTES = 64 << 20
_UPDATE_NUMEL = {"cpu": 1 << 23}
_UPDATE_NUMEL_ON_ACCELERATORS = 1 << 26
_NUM_SMALL = 256
_PASSES = 3

_OVERLAP_NUMEL = 1 << 24
_OVERLAP_PAGE_NBYTES = 1 << 20
_OVERLAP_PASSES = 5
"""Of a step in which update and disk take about as long, in many pages."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What rates are of, besides the machine.

    Attributes:
        device: where parameters are.
        folder: where the spill file is; None: the system's temporary folder.
        page_nbytes, prefetch_depth: of the requests that move it.
    """

    device: torch.device
    folder: Path | None
    page_nbytes: int
    prefetch_depth: int

    @property
    def spill_folder(self) -> Path:
        return self.folder or Path(tempfile.gettempdir())


def describe_machine(setup: Setup) -> dict[str, str]:
    """Return what tells one machine's rates from another's."""
    kernel = kernel_for(setup.device)
    target = next((backend.target for backend in backends() if backend.name == kernel.name), "")
    described = {
        "processor": f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "backend": f"{kernel.name} ({target})",
        "folder": str(setup.spill_folder),
        "disk": str(setup.spill_folder.stat().st_dev),
        "page": f"{setup.page_nbytes} bytes, {setup.prefetch_depth} ahead",
    }
    if setup.device.type != "cpu":
        described["device"] = device_name(setup.device)
    return described


def processor_name() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: torch.device) -> str:
    """Return what an accelerator calls itself."""
    module = getattr(torch, device.type)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def measure(setup: Setup, kinds: Iterable[tuple[str, str]], say: Callable[[str], object] = lambda _: None) -> Rates:
    """Return the rates of this machine.

    Args:
        setup: what to measure with.
        kinds: pairs of state format and parameters' dtype whose update is to be measured.
        say: is told what is being measured.

    Raises:
        SpillError: the folder cannot take a spill file.
    """
    say(f"the disk under {setup.spill_folder}")
    nbytes = {"host": measure_host(), **measure_disk(setup)}
    if setup.device.type != "cpu":
        say("copies to and from the accelerator")
        nbytes.update(measure_copies(setup))
    values = measure_updates(setup, kinds, say)
    overlap = None
    if setup.device.type == "cpu":
        say("the update and the disk at once")
        overlap = measure_overlap(setup)
    say("bookkeeping")
    return Rates(nbytes, values, measure_bookkeeping(setup), describe_machine(setup), overlap)


def rates_here(
    setup: Setup,
    kinds: Iterable[tuple[str, str]],
    *,
    again: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Rates:
    """Return this machine's rates: those kept from before, and what they lack measured now and kept.

    Args:
        setup: as of `measure`.
        kinds: as of `measure`.
        say: as of `measure`.
        again: whether to measure all of it whatever was kept.
    """
    wanted = sorted(set(kinds))
    kept = None if again else cached_rates(describe_machine(setup))
    if kept is None or (kept.overlap is None and setup.device.type == "cpu"):
        rates = measure(setup, wanted, say)
    else:
        missing = [kind for kind in wanted if "/".join(kind) not in kept.values_per_second]
        if not missing:
            return kept
        rates = kept | Rates({}, measure_updates(setup, missing, say), {})
    keep_rates(rates)
    return rates


def measure_updates(setup: Setup, kinds: Iterable[tuple[str, str]], say: Callable[[str], object]) -> dict[str, float]:
    """Return the values updated in a second, for pairs of state format and parameters' dtype."""
    values = {}
    for state_format, dtype in kinds:
        say(f"the update of {state_format} state and {dtype} parameters")
        values[f"{state_format}/{dtype}"] = measure_update(setup.device, state_format, dtype)
    return values


def measure_host() -> float:
    """Return the bytes that a copy in RAM moves in a second, counted once."""
    source, target = new_host_buffer(_HOST_NBYTES).fill_(1), new_host_buffer(_HOST_NBYTES)
    return _HOST_NBYTES / _best(lambda: target.copy_(source))


def measure_disk(setup: Setup) -> dict[str, float]:
    """Return bytes per second of pages written, of pages read, and both ways of pages read and written at once."""
    config = _config_that_pages(setup)
    num_frames = config.working_set
    count = max(min(_DISK_NBYTES // setup.page_nbytes, _DISK_PAGES), 3 * num_frames)
    pager = cpu_pager(config, Ledger(config.max_host_memory))
    try:
        noise = torch.randint(0, 256, (setup.page_nbytes,), dtype=torch.uint8, device="cpu")  # a disk may compress
        pages = _new_pages(pager, count)
        moved = (count - num_frames) * setup.page_nbytes
        written = _seconds(lambda: _pass(pager, pages, dirty=True, fill=noise))
        both = min(_seconds(lambda: _pass(pager, pages, dirty=True)) for _ in range(2))
        pager.flush()
        read = min(_seconds(lambda: _pass(pager, pages, dirty=False)) for _ in range(2))
    finally:
        pager.close()
    return {"disk_read": moved / read, "disk_write": moved / written, "disk_both": 2 * moved / both}


def _new_pages(pager: DevicePager, count: int) -> list[int]:
    pages = []
    for _ in range(count):
        page, _ = pager.open_page()
        pager.claim(page, pager.page_nbytes)
        pager.close_page()
        pages.append(page)
    return pages


def _pass(pager: DevicePager, pages: Sequence[int], *, dirty: bool, fill: Tensor | None = None) -> None:
    with closing(sweep(pager, pages, dirty=dirty)) as frames:
        for _, frame in frames:
            if fill is not None:
                frame.copy_(fill)


def measure_copies(setup: Setup, nbytes: int = 1 << 28) -> dict[str, float]:
    """Return the bytes per second of page-sized copies to the accelerator and from it."""
    host = torch.empty(setup.page_nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    device = torch.empty(setup.page_nbytes, dtype=torch.uint8, device=setup.device)
    count = max(nbytes // setup.page_nbytes, 4)

    def copies(target: Tensor, source: Tensor) -> None:
        for _ in range(count):
            target.copy_(source, non_blocking=True)
        _synchronize(setup.device)

    moved = count * setup.page_nbytes
    return {"up": moved / _best(lambda: copies(device, host)), "down": moved / _best(lambda: copies(host, device))}


def measure_update(device: torch.device, state_format: str, dtype: str) -> float:
    """Return the values that a resident step updates in a second."""
    numel = _UPDATE_NUMEL.get(device.type, _UPDATE_NUMEL_ON_ACCELERATORS)
    shape = (numel >> 10, 1 << 10)
    param = Parameter(torch.zeros(shape, dtype=DTYPES[dtype], device=device))
    param.grad = torch.full_like(param, 1e-3)
    with AdamW([param], **_arguments(StateFormat[state_format.upper()])) as optimizer:
        return numel / _best(lambda: _step(optimizer, device), warm_up=2)


def measure_overlap(setup: Setup) -> float:
    """Return how much of the shorter of update and disk the longer one hides, from 0 to 1.

    Of a step of 8-bit state, all of which moves: by turns what it takes, and what either takes alone.
    """
    config = _config_that_pages(replace(setup, page_nbytes=min(setup.page_nbytes, _OVERLAP_PAGE_NBYTES)))
    param, twin = (Parameter(torch.zeros(_OVERLAP_NUMEL >> 10, 1 << 10, dtype=torch.bfloat16)) for _ in range(2))
    param.grad = twin.grad = torch.full_like(param, 1e-3)
    pager = Pager(**asdict(config))  # shared with nobody, so its pages are numbered from 0 on
    with AdamW([param], optim_bits=8, is_paged=True, pager=pager) as paged, AdamW([twin], optim_bits=8) as resident:
        paged.step()
        on_cpu = pager.on(setup.device)
        pages = range(on_cpu.memory.num_pages)
        runs = (paged.step, lambda: _pass(on_cpu, pages, dirty=True), resident.step)
        rounds = [[_seconds(run) for run in runs] for _ in range(1 + _OVERLAP_PASSES)][1:]
    both, disk, update = (float(statistics.median(column)) for column in zip(*rounds, strict=True))
    hidden = max(disk, update) + min(disk, update) - both
    return min(max(hidden / min(disk, update), 0.0), 1.0)


def _arguments(state_format: StateFormat) -> dict[str, Any]:
    return {
        "optim_bits": 8 if state_format.is_8bit else 32,
        "amsgrad": state_format is StateFormat.FLOAT32_AMSGRAD,
        "block_wise": state_format is not StateFormat.TENSORWISE8,
    }


def measure_bookkeeping(setup: Setup) -> dict[str, float]:
    """Return the seconds that a step spends on each parameter, and on each page that moves, whatever is in them."""
    params = [Parameter(torch.zeros(16, device=setup.device)) for _ in range(_NUM_SMALL)]
    for param in params:
        param.grad = torch.zeros_like(param)
    with AdamW(params) as optimizer:
        parameter = _best(lambda: _step(optimizer, setup.device), warm_up=2) / _NUM_SMALL
    pager = EmptyPager(_config_that_pages(setup), torch.device("cpu")).the_one
    try:
        pages = _new_pages(pager, _NUM_SMALL)
        page = _best(lambda: _pass(pager, pages, dirty=True), warm_up=2) / _NUM_SMALL
    finally:
        pager.close()
    return {"page": page, "parameter": parameter}


def _config_that_pages(setup: Setup) -> PagingConfig:
    """Return the config whose frames are one working set, so that every page moves."""
    config = PagingConfig(setup.page_nbytes, None, None, setup.folder, setup.prefetch_depth)
    return replace(config, max_host_memory=config.working_set * setup.page_nbytes)


def _step(optimizer: AdamW, device: torch.device) -> None:
    optimizer.step()
    _synchronize(device)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _best(run: Callable[[], object], *, warm_up: int = 1) -> float:
    """Return the median seconds of a few runs, after some that do not count."""
    for _ in range(warm_up):
        run()
    return max(statistics.median(_seconds(run) for _ in range(_PASSES)), 1e-9)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return max(time.perf_counter() - begin, 1e-9)
