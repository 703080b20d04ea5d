"""`pagedopt.plan`: what an optimizer will take and move, and how long its steps will be, before anything is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from pagedopt.costs.measurement import Setup, rates_here
from pagedopt.costs.prediction import Prediction, Traffic, predict
from pagedopt.costs.rates import Rates, read_rates
from pagedopt.costs.rehearsal import Account, OptimizerClass, rehearse
from pagedopt.costs.sizes import weights_of
from pagedopt.costs.weights import ALL_LINEAR, DTYPES, Weight, lora
from pagedopt.optim import adamw
from pagedopt.optim.adamw import PagedAdamW
from pagedopt.paging.config import AUTOMATIC_PAGE_NBYTES, MIN_PAGE_NBYTES, PagingConfig
from pagedopt.units import format_bytes

OPTIMIZERS: dict[str, OptimizerClass] = {
    name: getattr(adamw, name)
    for name in ("AdamW", "AdamW8bit", "AdamW32bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit")
}
"""The six classes by name."""

GIB = 1 << 30

MANY_PAGES, MAX_PAGES = 50_000, 2_000_000
"""Planned in ten seconds, and in minutes."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What one more GiB of a budget would buy.

    Attributes:
        budget: the argument to raise.
        moved_nbytes: bytes less that a step moves, both ways.
        disk_nbytes: those of them that the disk moves.
        seconds: less that a step takes; None where no seconds are known.
    """

    budget: str
    moved_nbytes: int
    disk_nbytes: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What `pagedopt.plan` found. `str` of it is for people, `to_json` for programs.

    Attributes:
        optimizer: the class.
        device: where the parameters are.
        num_params: tensors that train.
        num_values: values in them.
        params_nbytes: their bytes.
        budget_name: the argument that bounds the frames: `max_gpu_memory`, on a CPU `max_host_memory`.
        is_automatic: whether that budget is what is free on this machine now, less a reserve.
        smallest_budget_nbytes: the least it can be with pages of this size.
        least_budget_nbytes: the least it can be with the smallest pages that it can have.
        account: bytes in each place, and moved, in each part of a run.
        written_per_thousand_steps: bytes that the disk is written in 1000 steps.
        prediction: seconds of a step; None where the machine's rates are not known.
        unpredicted: why there is no prediction; empty where there is one.
        gains: what one more GiB of each budget would buy.
        rates: those that the seconds follow from.
    """

    optimizer: str
    device: str
    num_params: int
    num_values: int
    params_nbytes: int
    budget_name: str
    is_automatic: bool
    smallest_budget_nbytes: int
    least_budget_nbytes: int
    account: Account
    written_per_thousand_steps: int
    prediction: Prediction | None
    unpredicted: str
    gains: tuple[Gain, ...]
    rates: Rates | None

    def __str__(self) -> str:
        from pagedopt.costs.text import plan_as_text

        return plan_as_text(self)

    def to_json(self) -> str:
        """Return all of it as JSON; every `_nbytes` is a number of bytes."""
        from pagedopt.costs.text import plan_as_json

        return plan_as_json(self)


def plan(
    model_or_sizes: Any,
    *,
    optimizer: str | OptimizerClass = "PagedAdamW8bit",
    optim_bits: int = 32,
    amsgrad: bool = False,
    min_8bit_size: int = 4096,
    block_wise: bool = True,
    page_size: int | str | None = None,
    max_gpu_memory: int | str | None = None,
    max_host_memory: int | str | None = None,
    spill_dir: str | os.PathLike[str] | None = None,
    prefetch_depth: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    lora_rank: int | None = None,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    rates: Rates | str | os.PathLike[str] | Literal[False] | None = None,
    measure_again: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> CostPlan:
    """Return what an optimizer will take, move and need of time, without making a tensor or loading a model.

    The bytes are exact: the optimizer's own code places its pages and sweeps them, over frames and tiers that hold
    nothing. The seconds follow from rates; those of this machine are measured once, in some seconds, and kept.

    Args:
        model_or_sizes: a model (on the meta device, if it should take no memory), parameters, groups or an optimizer
            that has them, a folder or file with a `config.json` or safetensors, the content of a `config.json`, or a
            number such as `"7B"`.
        optimizer: one of the six classes or its name.
        optim_bits: as of that class; so are all up to `prefetch_depth`.
        amsgrad: as of that class.
        min_8bit_size: as of that class.
        block_wise: as of that class.
        page_size: as of that class.
        max_gpu_memory: as of that class; None: what an automatic budget would be now on this machine.
        max_host_memory: the same.
        spill_dir: as of that class.
        prefetch_depth: as of that class.
        device: where the parameters will be, such as `"cuda"`; it need not be here. None: this machine's accelerator,
            the CPU if it has none.
        dtype: of the parameters, such as `"bfloat16"` or `"bf16"`; None: what `model_or_sizes` says, else float32.
        lora_rank: if given, only LoRA's matrices of this rank train, beside the layers that `target_modules` names.
        target_modules: ends of the names of linear layers, or `"all-linear"`: every one but the output head.
        rates: rates or a file of them; None: this machine's, measured if they were not before; False: no seconds.
        measure_again: whether to measure this machine whatever was kept.
        say: is told what is being measured.

    Raises:
        SizesError: the sizes cannot be read.
        RatesError: rates are missing or damaged.
        BudgetError: a budget is smaller than the working set, with the smallest that works.
        SpillError: the spill folder cannot be measured.
        TypeError, ValueError: any other argument that is wrong, or pages too many to plan.
    """
    where = _device_of(device)
    weights = weights_of(model_or_sizes, _dtype_of(dtype))
    if lora_rank is not None:
        targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
        weights = lora(weights, _rank_of(lora_rank), targets)
    optimizer_class = _class_of(optimizer)
    paging: dict[str, Any] = {
        "page_size": page_size,
        "max_gpu_memory": max_gpu_memory,
        "max_host_memory": max_host_memory,
        "spill_dir": spill_dir,
        "prefetch_depth": prefetch_depth,
    }
    arguments = {
        "optim_bits": optim_bits,
        "amsgrad": amsgrad,
        "min_8bit_size": min_8bit_size,
        "block_wise": block_wise,
    }
    config = _config_of(optimizer_class, paging)
    _announce(weights, config.page_nbytes(where), say)
    account = rehearse(weights, optimizer_class, config, where, arguments)
    found, why_not = _rates(rates, account, config, where, again=measure_again, say=say)
    return _assembled(optimizer_class.__name__, where, weights, config, account, found, why_not)


def _assembled(
    name: str,
    device: torch.device,
    weights: Sequence[Weight],
    config: PagingConfig,
    account: Account,
    rates: Rates | None,
    why_not: str,
) -> CostPlan:
    def seconds(traffic: Traffic) -> Prediction | None:
        if rates is None:
            return None
        return predict(account, rates, traffic, num_params=len(weights), on_accelerator=device.type != "cpu")

    budget_name, budget = config.frame_budget(device)
    return CostPlan(
        optimizer=name,
        device=str(device),
        num_params=len(weights),
        num_values=sum(weight.numel for weight in weights),
        params_nbytes=sum(weight.nbytes for weight in weights),
        budget_name=budget_name,
        is_automatic=budget is None,
        smallest_budget_nbytes=config.working_set * account.page_nbytes,
        least_budget_nbytes=_least_budget_nbytes(config, device),
        account=account,
        written_per_thousand_steps=1000 * account.steady_step.written["disk"],
        prediction=seconds(Traffic.of(account)),
        unpredicted=why_not,
        gains=_gains(account, budget_name, seconds),
        rates=rates,
    )


def _gains(account: Account, budget_name: str, seconds: Callable[[Traffic], Prediction | None]) -> tuple[Gain, ...]:
    """Return what one more GiB buys: it is a law of the engine that as many bytes less move each way."""
    now = Traffic.of(account)
    changes = []
    if now.nbytes:
        changes.append((budget_name, now.less(GIB)))
    if budget_name != "max_host_memory" and account.steady_step.disk_nbytes:
        changes.append(("max_host_memory", now.off_disk(min(GIB / account.steady_step.disk_nbytes, 1.0))))
    gains = []
    for name, then in changes:
        before, after = seconds(now), seconds(then)
        gains.append(
            Gain(
                name,
                round(now.nbytes - then.nbytes),
                round(now.disk_read + now.disk_written - then.disk_read - then.disk_written),
                None if before is None or after is None else before.seconds - after.seconds,
            )
        )
    return tuple(gains)


def _least_budget_nbytes(config: PagingConfig, device: torch.device) -> int:
    """Return the smallest budget that works: an automatic page shrinks with its budget."""
    if config.page_size is not None:
        return config.working_set * config.page_size
    page_nbytes = MIN_PAGE_NBYTES
    while page_nbytes < AUTOMATIC_PAGE_NBYTES:
        budget = config.working_set * page_nbytes
        if replace(config, max_gpu_memory=budget, max_host_memory=budget).page_nbytes(device) <= page_nbytes:
            break
        page_nbytes *= 2
    return config.working_set * page_nbytes


def _rates(
    given: Rates | str | os.PathLike[str] | Literal[False] | None,
    account: Account,
    config: PagingConfig,
    device: torch.device,
    *,
    again: bool,
    say: Callable[[str], object],
) -> tuple[Rates | None, str]:
    """Return the rates to predict with, or why there are none."""
    if isinstance(given, Rates):
        return given, ""
    if given is False:
        return None, "no rates were asked for"
    if given is not None:
        return read_rates(given), ""
    if device.type != "cpu" and not _is_here(device):
        return None, f"there is no {device.type} device here to measure; give rates of the machine that has it"
    setup = Setup(device, config.spill_dir, account.page_nbytes, config.prefetch_depth)
    kinds = [(values.state_format, values.dtype) for values in account.values if values.count]
    return rates_here(setup, kinds, again=again, say=say), ""


def _is_here(device: torch.device) -> bool:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return here is not None and here.type == device.type


def _announce(weights: Sequence[Weight], page_nbytes: int, say: Callable[[str], object]) -> None:
    """Say that a plan will take long, or refuse one that nobody would wait for."""
    pages = 2 * sum(weight.numel for weight in weights) // page_nbytes  # at the least: 8 bits for each moment
    if pages > MAX_PAGES:
        raise ValueError(
            f"the state would take more than {pages:,} pages of {format_bytes(page_nbytes)}, and a plan moves each of "
            f"them: give larger budgets or a larger page_size, {MAX_PAGES:,} pages take minutes"
        )
    if pages > MANY_PAGES:
        say(f"what becomes of {pages:,} pages")


# -- arguments --------------------------------------------------------------------------------------------------------


def _class_of(optimizer: str | OptimizerClass) -> OptimizerClass:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
        return OPTIMIZERS[optimizer]
    if optimizer not in OPTIMIZERS.values():
        raise TypeError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    return optimizer


def _config_of(optimizer_class: OptimizerClass, paging: dict[str, Any]) -> PagingConfig:
    given = {name: value for name, value in paging.items() if value is not None}
    if issubclass(optimizer_class, PagedAdamW):
        return PagingConfig.parse(**given)
    ignored = [name for name in given if name != "page_size"]
    if ignored:
        raise ValueError(
            f"{optimizer_class.__name__} keeps everything resident, so {', '.join(ignored)} would be ignored"
        )
    return PagingConfig.parse(**given, max_gpu_memory=0, max_host_memory=0)


def _device_of(device: str | torch.device | None) -> torch.device:
    if device is None:
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return here or torch.device("cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be such as cpu or cuda, got {device!r}: {str(error).splitlines()[0]}") from None
    if found.type == "meta":
        raise ValueError("device must be where the parameters will be trained, and nothing is trained on meta")
    return found


_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "float": "float32", "half": "float16"}


def _dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    found = DTYPES.get(_SHORT.get(name, name))
    if found is None:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _rank_of(rank: object) -> int:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"lora_rank must be a whole number of at least 1, got {rank!r}")
    return rank
