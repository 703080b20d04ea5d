"""Saving and loading state larger than its budget takes no more memory than the budget and a few pages."""

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
