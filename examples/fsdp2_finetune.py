"""FSDP2 with 8-bit AdamW state paged by every process, and a checkpoint that any number of processes can load.

    torchrun --nproc-per-node 2 examples/fsdp2_finetune.py                      train, save
    torchrun --nproc-per-node 3 examples/fsdp2_finetune.py --resume             load on three, train on
    torchrun --nproc-per-node 1 examples/fsdp2_finetune.py --resume --steps 0   load on one

Each process has its own budget and its own spill file. What is saved and what is loaded is printed as a hash of all
parameters and state put together: it does not depend on the number of processes. NCCL where every process has a GPU of
its own, gloo on the CPU otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from pagedopt import PagedAdamW8bit

DEVICE = "cuda" if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")) else "cpu"


def main() -> None:
    arguments = parse_arguments()
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    rank = dist.get_rank()
    model = sharded_model()
    spill = arguments.output / f"spill-rank-{rank}"
    spill.mkdir(parents=True, exist_ok=True)
    where = {"max_gpu_memory" if DEVICE == "cuda" else "max_host_memory": arguments.budget}
    optimizer = PagedAdamW8bit(model.parameters(), lr=1e-3, spill_dir=spill, **where)

    if arguments.resume:
        load(model, optimizer, arguments.output / "checkpoint")
        say(f"loaded {digest(model, optimizer)}")
    for tokens in batches(arguments.steps, rank):
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        say(f"loss {loss.item():.3f}")
    if arguments.steps:
        save(model, optimizer, arguments.output / "checkpoint")
        say(f"saved {digest(model, optimizer)}")

    memory = optimizer.memory_stats()
    pages = f"{memory.resident_pages} of {memory.pages} pages of state resident"
    say(f"rank {rank}: {pages}, budget {arguments.budget}", rank)
    dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/fsdp2"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--budget", default="320KiB", help="bytes of state that each process keeps where it trains")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


class ByteModel(nn.Module):
    """A causal transformer over bytes. No size is a multiple of two and of three, nor of the blocks of 8-bit state."""

    def __init__(self, width: int = 264, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, nhead=4, dim_feedforward=700, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.head(hidden)


def sharded_model() -> nn.Module:
    """Return the model, each layer and what is left over sharded over all processes."""
    torch.manual_seed(0)
    model = ByteModel().to(DEVICE)
    mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batches(steps: int, rank: int) -> Iterator[Tensor]:
    """Yield a batch of two sequences of Python's standard library for each step, others on each rank."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:50]
    corpus = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        starts = torch.randint(0, len(corpus) - 64, (2,), generator=generator).tolist()
        yield torch.stack([corpus[start : start + 64] for start in starts]).long().to(DEVICE)


def save(model: nn.Module, optimizer: PagedAdamW8bit, folder: Path) -> None:
    parameters, state = get_state_dict(model, optimizer)
    writer = dcp.FileSystemWriter(folder, overwrite=True)
    dcp.save({"model": parameters, "optimizer": state}, storage_writer=writer)


def load(model: nn.Module, optimizer: PagedAdamW8bit, folder: Path) -> None:
    parameters, state = get_state_dict(model, optimizer)
    dcp.load({"model": parameters, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=parameters, optim_state_dict=state)


def digest(model: nn.Module, optimizer: PagedAdamW8bit) -> str:
    """Return a hash of all parameters and state, whichever process has which part."""
    parameters, state = get_state_dict(model, optimizer)
    tensors: dict[str, Any] = dict(parameters)
    for name, entry in state["state"].items():
        tensors.update({f"{name}.{key}": value for key, value in entry.items()})
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].to(DEVICE)  # NCCL gathers on the GPU only; one tensor at a time
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        total.update(name.encode() + whole.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def say(text: str, rank: int = 0) -> None:
    if dist.get_rank() == rank:
        # One write for the whole line: all processes share one output, and print() may write the end of a line apart.
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
