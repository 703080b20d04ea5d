"""Lightning: the Trainer with its clipping, LightningCLI by class path, and Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")

import lightning
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from small import PAGED, assert_paged, assert_same, everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pagedopt import PagedAdamW8bit

STEPS = 6
WIDTH = 200


class Regression(lightning.LightningModule):
    """A model whose state does not fit one page. Its optimizer comes from whoever trains it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return (self.net(batch) - batch).square().mean()

    def train_dataloader(self) -> DataLoader[Any]:
        # An epoch is STEPS batches: Lightning resumes at the start of an epoch.
        return DataLoader(torch.randn(2 * STEPS, WIDTH, generator=torch.Generator().manual_seed(1)), batch_size=2)  # type: ignore[arg-type]


class WithOurs(Regression):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return PagedAdamW8bit(self.parameters(), **PAGED)


def fit(model: lightning.LightningModule, folder: Path, *, resume: Path | None = None, **options: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **options,
    )
    trainer.fit(model, ckpt_path=resume)
    return trainer


@pytest.mark.framework("lightning", "`return PagedAdamW8bit(self.parameters(), ...)` from `configure_optimizers`")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_with_clipping_resumes_to_the_bit_and_paged(tmp_path: Path, precision: Any) -> None:
    unbroken, resumed = WithOurs(), WithOurs()
    whole = fit(unbroken, tmp_path / "unbroken", precision=precision)
    checkpoint = tmp_path / "unbroken" / "epoch=0.ckpt"
    second = fit(resumed, tmp_path / "resumed", precision=precision, resume=checkpoint)
    assert second.global_step == 2 * STEPS
    assert_same(everything(unbroken, whole.optimizers[0]), everything(resumed, second.optimizers[0]))
    assert_paged(second.optimizers[0])


@pytest.mark.framework(
    "lightning", "`--optimizer pagedopt.PagedAdamW8bit --optimizer.max_gpu_memory 2GiB` with `LightningCLI`"
)
def test_the_command_line_takes_the_class_by_path_and_its_arguments(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse", reason="needs jsonargparse: pip install 'jsonargparse[signatures]'")
    cli = LightningCLI(
        Regression,
        save_config_callback=None,
        args=[
            "fit",
            "--trainer.max_steps=2",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={tmp_path}",
            "--optimizer=pagedopt.PagedAdamW8bit",
            "--optimizer.lr=0.01",
            "--optimizer.betas=[0.9, 0.95]",
            "--optimizer.page_size=64KiB",
            "--optimizer.max_host_memory=65536",
            "--optimizer.prefetch_depth=0",
        ],
    )
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer).__name__ == "PagedAdamW8bit"
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.9, 0.95)
    assert_paged(optimizer)


@pytest.mark.framework("lightning", "`fabric.setup(model, PagedAdamW8bit(model.parameters(), ...))`")
def test_fabric_resumes_to_the_bit_and_paged(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)

    def start() -> tuple[Any, Any]:
        model = Regression()
        return fabric.setup(model.net, PagedAdamW8bit(model.net.parameters(), **PAGED))  # type: ignore[return-value]

    def train(model: Any, optimizer: Any, first: int) -> None:
        for seed in range(first, first + STEPS):
            batch = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            fabric.backward((model(batch) - batch).square().mean())
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()

    model, optimizer = start()
    train(model, optimizer, 0)
    fabric.save(tmp_path / "half", {"model": model, "optimizer": optimizer})
    train(model, optimizer, STEPS)

    resumed, resumed_optimizer = start()
    fabric.load(tmp_path / "half", {"model": resumed, "optimizer": resumed_optimizer})
    train(resumed, resumed_optimizer, STEPS)
    assert_same(everything(model, optimizer), everything(resumed, resumed_optimizer))
    assert_paged(resumed_optimizer)
