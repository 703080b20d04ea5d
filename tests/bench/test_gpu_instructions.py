"""What the Triton kernels take of a GPU, guarded without one; and how it is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedopt.codecs.blockwise import encode

pytest.importorskip("triton", reason="Triton is not installed")

from bench.gpu_instructions import BLOCKWISE, GATHER_CONFLICTS, GPUS, count_listing, pipe_clocks, pipe_of, width
from bench.listing import in_loops, ordinary_way, parse, successors

ROOT = Path(__file__).parent.parent.parent

LISTING = """
.text.update_page:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   CALL.REL.NOINC `($slow) ;
.L_x_1:
        /*0030*/                   BRX R34 -0x440                            (*"BRANCH_TARGETS .L_x_2,.L_x_3"*);
.L_x_2:
        /*0040*/                   STG.E.U8 desc[UR6][R2.64], R4 ;
        /*0050*/                   EXIT ;
.L_x_3:
        /*0060*/                   FADD R1, R1, R1 ;
        /*0070*/                   STG.E.128 desc[UR6][R2.64], R4 ;
        /*0080*/               @P1 BRA `(.L_x_3) ;
        /*0090*/               @P2 EXIT ;
        /*00a0*/                   IADD3 R1, R1, R1, RZ ;
        /*00b0*/                   EXIT ;
"""


def names_on_the_way() -> tuple[list[str], list[str]]:
    listed, labels = parse(LISTING)
    edges = successors(listed, labels)
    way = ordinary_way(listed, edges, lambda text: text.startswith("STG.E.128"))
    return [listed[i].name for i in way], [listed[i].name for i in way if i in in_loops(way, edges, listed)]


def test_the_way_of_an_ordinary_tile_goes_around_calls_and_through_the_wide_store():
    way, _ = names_on_the_way()
    assert way == ["S2R", "BRA", "BRX", "FADD", "STG.E.128", "BRA", "EXIT", "IADD3", "EXIT"]


def test_what_may_be_passed_again_is_in_a_loop_and_counts_once_a_part():
    _, repeated = names_on_the_way()
    assert repeated == ["FADD", "STG.E.128", "BRA"]
    found = count_listing(LISTING, GPUS[90], 120, 0, BLOCKWISE, 10)
    assert found.instructions == (6 + 4 * 3) / 16
    assert found.stores == {16: 4}


def test_a_multiprocessor_holds_as_many_threads_as_its_registers_allow():
    assert [count_listing(LISTING, GPUS[90], registers, 0, BLOCKWISE, 10).threads for registers in (32, 128, 129)] == [
        2048,
        512,
        256,
    ]


@pytest.mark.parametrize(
    ("name", "pipe", "nbytes"),
    [("LDG.E.128", "memory", 16), ("STG.E.U8", "memory", 1), ("LDG.E.64", "memory", 8), ("LDS", "memory", 4)],
)
def test_a_load_or_store_is_as_wide_as_it_says(name, pipe, nbytes):
    assert (pipe_of(name), width(name)) == (pipe, nbytes)


def test_every_pipe_takes_so_many_values_a_clock():
    clocks = pipe_clocks({"FFMA": 4, "LOP3.LUT": 2, "MUFU.RCP": 1, "LDS": 2, "BRA": 3}, has_tables=True)
    assert clocks == {"issue": 3.0, "fma": 1.0, "alu": 1.0, "special": 2.0, "memory": 2 * GATHER_CONFLICTS}


def test_look_ups_of_moments_meet_in_a_bank_as_often_as_is_counted():
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(300, 256, generator=generator).exp()
    moments = {True: torch.randn(300, 256, generator=generator) * scale, False: scale}
    found = []
    for signed, values in moments.items():
        absmax = values.abs().amax(1, keepdim=True).expand_as(values)
        found.append(busiest_bank(encode(values, absmax, signed=signed).view(torch.uint8).long()))
        bits = (values.abs() / absmax).clamp_min(2.0**-22).view(torch.int32).long()
        found.append(busiest_bank(bits >> (17 if signed else 16)))
    assert 0.9 * GATHER_CONFLICTS < sum(found) / len(found) < 1.1 * GATHER_CONFLICTS


def busiest_bank(words: Tensor) -> float:
    """Return the most words in one bank that a warp's 32 threads look up at a time; equal words are one."""
    warps = words.view(-1, 32, 8).transpose(1, 2).reshape(-1, 32).sort(1).values
    is_first = torch.ones_like(warps, dtype=torch.bool)
    is_first[:, 1:] = warps.diff(dim=1) != 0
    in_bank = torch.zeros(len(warps), 32, dtype=torch.long).scatter_add_(1, warps % 32, is_first.long())
    return float(in_bank.amax(1).double().mean())


# --- the kernels ------------------------------------------------------------------------------------------------------


def counts(only: str, tmp_path: Path) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "bench.gpu_instructions", "--json", "--only", only]
    child = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    (found,) = json.loads(child.stdout).values()
    return dict(found)


def test_the_8_bit_update_keeps_its_registers_its_width_and_its_instructions(tmp_path):
    """It took 146 instructions a value when each code was searched for in four look-ups."""
    found = counts("8-bit block-wise, bfloat16, bfloat16", tmp_path)
    assert found["spills"] <= 2, "more than a number of the whole tile"
    assert found["threads"] >= 512
    assert found["instructions"] <= 100
    assert set(found["stores"]) == {"4", "8", "16"}, "absmax, codes and parameters"
    assert not {"1", "2"} & set(found["loads"]), "values are loaded one by one"
    assert max(found["clocks"].values()) <= 24


def test_the_32_bit_update_keeps_its_registers_its_width_and_its_instructions(tmp_path):
    found = counts("32-bit, float32, float32", tmp_path)
    assert found["spills"] == 0
    assert found["threads"] >= 1024
    assert found["instructions"] <= 60
    assert set(found["stores"]) == {"16"}
    assert max(found["clocks"].values()) < found["memory_clocks"] / 3, "far below what memory takes"
