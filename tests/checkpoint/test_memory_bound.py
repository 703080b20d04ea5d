"""Saving, loading and converting state larger than the budget takes no more memory than the budget and a few pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from child import report_of
from residue import needs_proc

_SCRIPT = """
import json, re, sys, warnings
from pathlib import Path
import torch
import pagedopt

torch.set_num_threads(1)
warnings.simplefilter("ignore")
folder, saves, loads = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
param = torch.nn.Parameter(torch.zeros(4096, 4096))
options = dict(page_size="1MiB", max_host_memory="16MiB", spill_dir=folder)


def peak_growth(act):
    Path("/proc/self/clear_refs").write_text("5")
    before = memory()
    act()
    return memory() - before


def memory():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def of(bits, param=param):
    return pagedopt.PagedAdamW([param], optim_bits=int(bits), **options)


def warm_up():  # imports, and code that is read into memory when it first runs
    small = torch.nn.Parameter(torch.zeros(64, 300))
    saved, loaded = of(saves, small), of(loads, small)
    saved.init_state()
    pagedopt.save(saved, folder / "small")
    pagedopt.load(loaded, folder / "small")


warm_up()
first, second = of(saves), of(loads)
first.init_state()
grown = {"save": peak_growth(lambda: pagedopt.save(first, folder / "checkpoint"))}
first.close()
grown["load"] = peak_growth(lambda: pagedopt.load(second, folder / "checkpoint"))
grown["state"] = second.memory_stats().host_bytes
grown["resident"] = second.memory_stats().resident_pages << 20
print(json.dumps(grown))
"""


@needs_proc
@pytest.mark.parametrize(("saves", "loads"), [(32, 32), (8, 8), (32, 8), (8, 32)])
def test_memory_is_the_budget_and_a_few_pages(saves: int, loads: int, tmp_path: Path) -> None:
    """State is 128 MiB in 32 bits and 32 MiB in 8; the budget is 16 MiB, of pages of 1 MiB."""
    grown = report_of(_SCRIPT, tmp_path, saves, loads)
    assert grown["state"] >= (120 if loads == 32 else 30) << 20
    assert grown["resident"] <= 16 << 20
    few = 24 << 20  # sixteen chunks in flight of 1 MiB, and a piece of 2^15 values being converted
    assert grown["save"] <= few, "the frames were there before"
    assert grown["load"] <= (16 << 20) + few


_CONVERT = """
import json, sys, threading, time
from pathlib import Path
import torch
import pagedopt
from pagedopt.checkpoint import convert as module

torch.set_num_threads(1)
folder, to, bits = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
module._IN_RAM_NBYTES = 0


def anonymous():
    found = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(found[0].split()[1]) << 10


def save(name, numel):
    param = torch.nn.Parameter(torch.zeros(numel // 4096, 4096))
    options = dict(page_size="1MiB", max_host_memory="16MiB", spill_dir=folder)
    with pagedopt.PagedAdamW([param], optim_bits=40 - bits, **options) as optimizer:
        optimizer.init_state()
        pagedopt.save(optimizer, folder / name)


save("small", 1 << 16)
save("large", 1 << 24)
module.convert(folder / "small", folder / "small.out", to, bits=bits)
before, peak, done = anonymous(), 0, threading.Event()


def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())


thread = threading.Thread(target=watch)
thread.start()
module.convert(folder / "large", folder / "large.out", to, bits=bits)
done.set()
thread.join()
print(json.dumps(peak - before))
"""


@needs_proc
@pytest.mark.parametrize(("to", "bits"), [("pagedopt", 8), ("pagedopt", 32), ("torch", 32), ("bitsandbytes", 8)])
def test_a_conversion_takes_a_few_chunks_of_memory(to: str, bits: int, tmp_path: Path) -> None:
    """Of 128 MiB of 32-bit state, or 32 MiB of 8-bit; what a mapped file holds the system can take back."""
    assert report_of(_CONVERT, tmp_path, to, bits) < 32 << 20
