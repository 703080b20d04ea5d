"""A plugin for Axolotl.

In its YAML:

    plugins:
      - pagedopt.integrations.axolotl.PagedAdamWPlugin
    paged_adamw:
      optim_bits: 8
      max_gpu_memory: 2GiB

What `paged_adamw` has are arguments of `pagedopt.PagedAdamW`; learning rate, betas, eps and weight decay are Axolotl's.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from pagedopt import PagedAdamW
from pagedopt.integrations.transformers import PagingCallback


class PagedAdamWArguments(BaseModel):
    """The key that this plugin adds to Axolotl's configuration."""

    paged_adamw: dict[str, Any] | None = None


class PagedAdamWPlugin(BasePlugin):
    """Trains with `pagedopt.PagedAdamW` in place of the configuration's `optimizer`, and logs what paging does."""

    def get_input_args(self) -> str:
        """Return where the keys that this plugin adds are defined."""
        return f"{__name__}.{PagedAdamWArguments.__qualname__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Give the trainer, which has no optimizer yet, the class and the arguments to make it with."""
        args = trainer.args
        options = {
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            **(cfg.paged_adamw or {}),
        }
        trainer.optimizer_cls_and_kwargs = (PagedAdamW, options)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[PagingCallback]:  # noqa: ARG002 - Axolotl's
        """Return what Axolotl adds to the trainer's callbacks."""
        return [PagingCallback()]
