"""A full fine-tune under a hard budget, interrupted in the middle and resumed: the same to the bit, and still paged.

    python examples/full_finetune.py                               a small model it builds itself, on any machine
    python examples/full_finetune.py --model Qwen/Qwen2.5-0.5B --lr 1e-5 --budget 512MiB      a real one, on a GPU

Three runs of `transformers.Trainer` from one seed: one to the end, one that stops after its checkpoint in the middle,
and one that takes that up with a new model and a new optimizer. Needs `pip install "pagedopt[hf]"`.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path
from typing import Any

# Before CUDA is started: with two GPUs, Trainer would split each batch with nn.DataParallel.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
    set_seed,
)

from pagedopt import PagedAdamW8bit
from pagedopt.integrations.groups import parameter_groups
from pagedopt.integrations.transformers import PagingCallback

ON_GPU = torch.cuda.is_available()
HAS_BFLOAT16 = ON_GPU and torch.cuda.is_bf16_supported(including_emulation=False)


def main() -> None:
    arguments = parse_arguments()
    left = everything_of(train(arguments, "unbroken"))
    train(arguments, "interrupted", callbacks=[StopAtCheckpoint()])
    resumed = train(arguments, "interrupted", resume=True)

    right = everything_of(resumed)
    differing = [name for name, value in left.items() if not torch.equal(value, right[name])]
    memory = resumed.optimizer.optimizer.memory_stats()
    print(
        f"{len(left) - len(differing)} of {len(left)} tensors of parameters and state are the same to the bit; "
        f"{memory.resident_pages} of {memory.pages} pages of state are resident"
    )
    raise SystemExit(bool(differing))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model id or folder; default: a small Llama with random weights")
    parser.add_argument("--output", type=Path, default=Path("out/full"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--budget", default="1MiB", help="bytes of AdamW state to keep in the training device's memory")
    return parser.parse_args()


def train(
    arguments: argparse.Namespace, name: str, *, resume: bool = False, callbacks: list[TrainerCallback] | None = None
) -> Trainer:
    set_seed(0)
    model = new_model(arguments.model)
    where = "max_gpu_memory" if ON_GPU else "max_host_memory"
    # Groups with embeddings in 32-bit state; without "params", Trainer makes its own groups.
    options = {"params": parameter_groups(model), "lr": arguments.lr, where: arguments.budget}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.output / name),
            max_steps=arguments.steps,
            save_steps=arguments.steps // 2,
            logging_steps=arguments.steps // 2,
            per_device_train_batch_size=2,
            bf16=HAS_BFLOAT16,
            fp16=ON_GPU and not HAS_BFLOAT16,
            use_cpu=not ON_GPU,
            full_determinism=ON_GPU,  # else the kernels of a GPU add in any order, and no two runs are the same
            report_to="none",
        ),
        train_dataset=sequences(arguments.model, length=512 if ON_GPU else 64),
        optimizer_cls_and_kwargs=(PagedAdamW8bit, options),
        callbacks=[PagingCallback(), *(callbacks or [])],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class StopAtCheckpoint(TrainerCallback):
    """The interruption: training ends as soon as a checkpoint is on disk."""

    def on_save(self, _args: Any, _state: Any, control: TrainerControl, **_kwargs: Any) -> None:
        control.should_training_stop = True


def new_model(name: str | None) -> torch.nn.Module:
    if name is not None:
        # In float32 under autocast: in bfloat16, a parameter would not be moved by updates as small as these.
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    )


def sequences(name: str | None, length: int) -> Dataset:
    """Return the sources of Python's standard library as sequences; without a tokenizer, a token is a byte."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:100]
    text = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    tokens = list(text.encode()) if name is None else AutoTokenizer.from_pretrained(name)(text)["input_ids"]
    rows = [tokens[start : start + length] for start in range(0, min(len(tokens), 1 << 18) - length, length)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def everything_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return all parameters and all state by name."""
    state = trainer.optimizer.state_dict()["state"]
    moments = {f"state {index} {key}": value for index, entry in state.items() for key, value in entry.items()}
    return {name: value.cpu() for name, value in trainer.model.state_dict().items()} | moments


if __name__ == "__main__":
    main()
