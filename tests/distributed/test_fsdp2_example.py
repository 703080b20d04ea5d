"""examples/fsdp2_finetune.py, as a person runs it and as more and fewer processes load what it saved."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster import Cluster

from pagedopt import PagedAdamW8bit

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2_finetune.py"


def _loaded(folder: str) -> str:
    example = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))
    model = example.sharded_model()
    optimizer = PagedAdamW8bit(model.parameters(), max_host_memory="320KiB")
    example.load(model, optimizer, Path(folder))
    digest: str = example.digest(model, optimizer)
    return digest


@pytest.mark.framework("torch.distributed", "`examples/fsdp2_finetune.py` with `torchrun`")
def test_what_two_processes_save_one_and_three_load_to_the_bit(
    cluster_of: Callable[[int], Cluster], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(EXAMPLE), "--output", str(tmp_path), "--steps", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (saved,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("saved")]
    for world in (1, 3):
        assert set(cluster_of(world).run(_loaded, str(tmp_path / "checkpoint"))) == {saved}
    spilled = [line for line in done.stdout.splitlines() if "pages of state resident" in line]
    assert len(spilled) == 2
    for line in spilled:
        resident, pages = (int(word) for word in line.split() if word.isdigit())
        assert resident < pages
