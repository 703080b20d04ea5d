"""QLoRA, the whole way: an NF4 base model, LoRA adapters, TRL's SFTTrainer, and AdamW state under a budget.

    python examples/qlora_sft.py                                   a small model it builds itself, on any machine
    python examples/qlora_sft.py --model Qwen/Qwen2.5-7B --lr 2e-4 --steps 200 --budget 64MiB     a real one, on a GPU
    python examples/qlora_sft.py --resume                          take up the last checkpoint in --output

The text is Python's own standard library, which every machine has. Needs `pip install "pagedopt[hf]"`.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path
from typing import Any

# Before CUDA is started: with two GPUs, Trainer would split each batch with nn.DataParallel, which knows no NF4 layer.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import torch
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from pagedopt import PagedAdamW8bit
from pagedopt.integrations.transformers import PagingCallback

ON_GPU = torch.cuda.is_available()
HAS_BFLOAT16 = ON_GPU and torch.cuda.is_bf16_supported(including_emulation=False)
COMPUTE = torch.bfloat16 if HAS_BFLOAT16 else torch.float16 if ON_GPU else torch.float32


def main() -> None:
    arguments = parse_arguments()
    set_seed(0)
    trainer = new_trainer(arguments)
    trainer.train(resume_from_checkpoint=arguments.resume)
    trainer.save_model()

    memory = trainer.optimizer.optimizer.memory_stats()
    print(
        f"{memory.resident_pages} of {memory.pages} pages of state resident, "
        f"{memory.disk_bytes >> 10} KiB on disk, budget {(memory.budget_bytes or 0) >> 10} KiB"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model id or folder; default: a small Llama with random weights")
    parser.add_argument("--output", type=Path, default=Path("out/qlora"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument(
        "--budget", default="512KiB", help="bytes of AdamW state to keep in the training device's memory"
    )
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def new_trainer(arguments: argparse.Namespace) -> SFTTrainer:
    name = arguments.model or build_small_model(arguments.output / "base")
    tokenizer = AutoTokenizer.from_pretrained(name)
    trainer = SFTTrainer(
        model=nf4_base(name),
        args=SFTConfig(
            output_dir=str(arguments.output),
            max_steps=arguments.steps,
            save_steps=max(arguments.steps // 2, 1),
            logging_steps=5,
            per_device_train_batch_size=2,
            max_length=512 if ON_GPU else 128,
            gradient_checkpointing=ON_GPU,
            bf16=COMPUTE is torch.bfloat16,
            fp16=COMPUTE is torch.float16,
            use_cpu=not ON_GPU,
            report_to="none",
        ),
        train_dataset=standard_library(documents=200),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=arguments.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        optimizer_cls_and_kwargs=(PagedAdamW8bit, {"lr": arguments.lr, **paging(arguments.budget)}),
        callbacks=[PagingCallback()],
    )
    # TRL makes the adapters bfloat16 here, PEFT makes them float32 when a checkpoint is loaded. Only if they are one of
    # the two all along is a resumed run the same to the bit, and small updates are not lost in float32.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def paging(budget: str) -> dict[str, Any]:
    """Return the arguments that keep this much state where the update runs, and page the rest."""
    return {"max_gpu_memory" if ON_GPU else "max_host_memory": budget}


def nf4_base(name: str) -> torch.nn.Module:
    """Return the frozen base model in NF4."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE,
    )
    model = AutoModelForCausalLM.from_pretrained(
        name, quantization_config=quantization, dtype=COMPUTE, device_map={"": 0 if ON_GPU else "cpu"}
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=ON_GPU)


def build_small_model(folder: Path) -> str:
    """Write a two-layer Llama over bytes into `folder` and return its path."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<end>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def standard_library(documents: int) -> Dataset:
    """Return the sources of Python's standard library as a data set with the column `text`."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:documents]
    return Dataset.from_dict(
        {"text": [source.read_text(encoding="utf-8", errors="ignore")[:2000] for source in sources]}
    )


if __name__ == "__main__":
    main()
