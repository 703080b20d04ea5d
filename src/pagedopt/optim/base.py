"""The torch face: parameters, groups, state and checkpoints as `torch.optim.Optimizer` has them, over pages.

step
  settle          what people wrote into optimizer.state goes into the pages
  check           every gradient, before anything changes
  place           parameters seen for the first time get pages
  advance, run    `optim.step`: counters and scalars, then the sweep
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload
from weakref import ref

import torch
from torch import Tensor
from typing_extensions import Self

from pagedopt.codecs.base import CODEC_VERSION
from pagedopt.errors import BudgetError, PagedOptError, StateLostError
from pagedopt.formats.recognise import recognise
from pagedopt.kernels.select import kernel_for
from pagedopt.optim import matching, state_dicts
from pagedopt.optim.arguments import StateOptions, check_hyperparameters, number
from pagedopt.optim.gradients import check_gradients
from pagedopt.optim.overrides import GlobalOptimManager
from pagedopt.optim.parameters import Parameters
from pagedopt.optim.parts import local_tensor
from pagedopt.optim.placement import Placement
from pagedopt.optim.plan import Plan
from pagedopt.optim.reports import Reports
from pagedopt.optim.state import StateMap
from pagedopt.optim.statistics import MemoryStats, memory_stats, paging_stats
from pagedopt.optim.step import Step, run_all
from pagedopt.optim.store import Store
from pagedopt.paging.config import PagingConfig
from pagedopt.paging.pager import Pager, shared_pager
from pagedopt.paging.stats import PagingStats

_T = TypeVar("_T")


class PagedOptimizer(torch.optim.Optimizer):
    """AdamW whose state lives in pages. The six public classes differ in their arguments only.

    Args:
        params: parameters, (name, parameter) pairs or groups, as `torch.optim.Optimizer` takes them.
        defaults: hyperparameters of the groups that do not have their own.
        options: how state is kept where neither a group nor an override says otherwise.
        pager: the pager, or the configuration of the one that all optimizers with the same configuration share.
    """

    def __init__(
        self, params: Any, defaults: dict[str, Any], options: StateOptions, pager: Pager | PagingConfig
    ) -> None:
        self._build(options, pager)
        super().__init__(params, {**defaults, "state_codec": CODEC_VERSION})

    def _build(self, options: StateOptions, pager: Pager | PagingConfig) -> None:
        self._options = options
        self._pager_given = pager
        self._store = Store(pager if isinstance(pager, Pager) else shared_pager(pager))
        self._state_map = StateMap(self._store.discard, self._store.clear)
        self._parameters = Parameters(options, self._store)
        self._placement = Placement(self._parameters, self._store, self._state_map)
        self._is_closed = False
        self._step_stats = PagingStats()
        self._stats_since_step = PagingStats()
        self._is_stepping = False
        self._reports = Reports(self._store)

    # -- step ---------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # As torch's own optimizers have it: the public torch.compiler.disable would import the compiler here.
    @torch._disable_dynamo  # type: ignore[attr-defined]  # noqa: SLF001
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it; called once, with gradients enabled.

        Raises:
            TypeError, ValueError: a gradient that cannot be stepped; nothing was changed.
            StateLostError: state was lost, or this step was interrupted between pages; reload model and state.
            RuntimeError: a CUDA graph is being captured.
        """
        _refuse_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._store.lock, torch.no_grad():
            self._begin()
            params = self._parameters.all
            grads = [param.grad for param in params]
            check_gradients(params, grads, self._name_of)
            only_makes_state = self._is_state_making_step(grads)
            self._placement.place_missing(params, grads)
            if only_makes_state:
                return loss
            plans = self._parameters.plans_of(None)
            self._run([self._new_step(plan, [param.grad for param in plan.params]) for plan in plans])
            self._step_stats, self._stats_since_step = self._stats_since_step, PagingStats()
            self._reports.end_step()
        return loss

    def step_param(self, param: Tensor | str, grad: Tensor | None = None) -> None:
        """Update one parameter, by object or by name, with `grad` or, without one, with its own gradient.

        Its `step` counts up by itself; a following `step()` updates the parameter again if it still has a gradient.

        Raises:
            KeyError: no parameter of this name or no parameter of this optimizer.
            TypeError, ValueError: a gradient that cannot be stepped, or none; nothing was changed.
        """
        _refuse_capture()
        with self._store.lock, torch.no_grad():
            if isinstance(param, Tensor) and self._parameters.is_fresh_for(param, self.param_groups):
                self._check_usable()
                self._store.settle()
                self._placement.take_in()
            else:
                self._begin()
            target = self._parameters.named(param) if isinstance(param, str) else param
            if target not in self._parameters:
                raise KeyError("this tensor is no parameter of this optimizer")
            grad = target.grad if grad is None else grad
            if grad is None:
                raise ValueError(f"{self._name_of(target)} has no gradient; pass grad=")
            check_gradients([target], [grad], self._name_of)
            self._reports.begin_param(target)
            self._placement.place_missing([target], [grad])
            plans = self._parameters.plans_of(target)
            self._run([self._new_step(plan, [grad], is_part=True) for plan in plans])

    def fetch_ahead(self) -> None:
        """Begin to read the pages that the next step needs first, where there are frames for them: a hint.

        Never raises, and changes nothing but time. `fetch_in_backward` calls it when the last gradients come.
        """
        with self._store.lock:
            if not self._is_closed and not self._store.is_lost:
                for plan in self._parameters.plans_of(None):
                    plan.pager.prefetch(plan.pages)

    def _new_step(self, plan: Plan, grads: list[Tensor | None], *, is_part: bool = False) -> Step:
        return Step(plan, grads, self._store.counters, kernel_for(plan.device), is_part=is_part)

    def _run(self, steps: Sequence[Step]) -> None:
        before = paging_stats(self._store)
        self._is_stepping = True
        try:
            run_all(steps, self._store)
        finally:
            self._is_stepping = False
        done = paging_stats(self._store) - before
        self._stats_since_step += done
        self._reports.add(done)
        self._store.refresh()
        for step in steps:
            step.end()

    def _is_state_making_step(self, grads: Sequence[Tensor | None]) -> bool:
        """Return whether this is torch.distributed's way to make state: a first step with lr 0 and only zero gradients.

        It makes state and is no step: counting it would shift every bias correction after it.
        """
        if self._store.records or any(number(group["lr"], "lr") != 0 for group in self.param_groups):
            return False
        given = [local_tensor(grad) for grad in grads if grad is not None]
        return bool(given) and not any(bool(grad.any()) for grad in given)

    # -- groups and plans ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; it may also have optim_bits, min_8bit_size, block_wise and percentile_clipping.

        Raises:
            TypeError, ValueError: an option that is wrong, named with its value.
            BudgetError: the budget of the group's device cannot hold the working set. The group is not added.
        """
        if isinstance(param_group, dict):
            checked = {**check_hyperparameters(param_group), **StateOptions.parse(param_group)}
            bits = self._options.overlaid(checked).optim_bits
            if bits == 8 and checked.get("amsgrad", self.defaults["amsgrad"]):
                raise ValueError("amsgrad=True needs 32-bit state; set amsgrad=False or optim_bits=32")
            param_group = {**param_group, **checked}
        _add_param_group(self, param_group)
        try:
            for device in {param.device for param in self.param_groups[-1]["params"]}:
                self._store.pager.config.check_budget(device)
        except BudgetError:
            self.param_groups.pop()
            raise

    def _begin(self) -> None:
        """Bring everything that depends on parameters, groups and assigned state up to date."""
        self._check_usable()
        self._learn_parameters()
        self._placement.follow_formats()
        self._store.settle()
        self._placement.take_in()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise PagedOptError("this optimizer is closed; make a new one and load its state")
        self._store.check_whole()

    def _learn_parameters(self) -> None:
        """Learn what changed about parameters; state of those that are gone (FSDP2 replaces them) is released."""
        for gone in self._parameters.refresh(self.param_groups):
            del self._state_map[gone]

    def _name_of(self, param: Tensor) -> str:
        return self._parameters.name_of(param)

    # -- placement ----------------------------------------------------------------------------------------------------

    def init_state(self) -> None:
        """Make the state of every parameter that requires a gradient now, instead of at its first step.

        Raises:
            SpillError, BudgetError: there is no room.
        """
        with self._store.lock, torch.no_grad():
            self._begin()
            for param in self._parameters.all:
                if param.requires_grad:
                    self._placement.place_new(param)

    # -- state and checkpoints ----------------------------------------------------------------------------------------

    @property
    def state(self) -> StateMap:
        """State by parameter, as dicts that read and write the pages.

        - 32-bit: `step`, `exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`, float32 of the parameter's shape.
        - 8-bit: `step`, the codes `exp_avg` (int8) and `exp_avg_sq` (uint8, of the root) of the parameter's shape, and
          their scales `exp_avg_absmax` and `exp_avg_sq_absmax`, float32 [rows, blocks of a row].

        A tensor read is a copy that is watched: what is written into it is in the pages before the next step. Entries
        can be assigned, deleted and cleared; assigned ones may be another library's.
        """
        return self._state_map

    @state.setter
    def state(self, values: Mapping[Any, Any]) -> None:
        if values is not self._state_map:
            taken = dict(values)
            self._state_map.part_with_all()
            before = ref(self._state_map)
            self._state_map = self._placement.states = StateMap(self._store.discard, self._store.clear)
            held = before()
            if held is not None:  # as by who puts the state aside, to bring it back later
                held.leave()
            self._store.clear()
            self._state_map.update(taken)

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups as torch does: plain dicts of CPU tensors, a snapshot that shares no memory.

        Tensors that together exceed the host budget are mapped files: state on disk is saved without RAM for it. The
        tensors of an entry are those of `state`; `pagedopt.save` writes the same without a state dict.

        Raises:
            StateLostError: the state is lost.
            SpillError: a page could not be read, or there is no room for the mapped files.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        with self._store.lock, torch.no_grad():
            self._begin()
            packed: dict[str, Any] = state_dicts.pack(self._store, self._state_map, self.param_groups)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            packed = _first(post_hook(self, packed), packed)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put state back into pages, within the budget, from wherever its tensors are.

        Takes what any of these classes saved, with any page size, budget and bits, and torch's, bitsandbytes',
        torchao's and flashoptim's. State is converted to the precision that this optimizer keeps, with one warning that
        says so. Parameters that have names on both sides are matched by name, others by position.

        Raises:
            ValueError: the groups do not match, or an entry does not fit its parameter; nothing is changed.
            SpillError, BudgetError: there is no room for the state, or it could not be written. What was here before is
                gone, and if that was any state, all use raises `StateLostError` until state is loaded or cleared.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = _first(pre_hook(self, state_dict), state_dict)
        self.replace_state(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def replace_state(
        self,
        state_dict: Mapping[str, Any],
        recognise: state_dicts.Recognise = recognise,
        verify: Callable[[], None] | None = None,
    ) -> None:
        """Check a state dict, then put it in the place of all state: what all ways to load share. No hook fires.

        Args:
            state_dict: its entries may be anything that `recognise` knows.
            recognise: returns the checked entry of a parameter of a shape.
            verify: raises if `state_dict` is damaged; called, after all other checks, if there is state to be lost.

        Raises:
            ValueError: it cannot be taken in; nothing is changed.
            Exception: reading it or writing pages failed midway. What is here now is what a new optimizer has; if
                there was state, then nothing can be done with this one until state is loaded or cleared.
        """
        with self._store.lock, torch.no_grad():
            if self._is_closed:
                self._check_usable()
            match = matching.match(self.param_groups, state_dict, self.defaults)
            before, self.param_groups = self.param_groups, match.groups
            has_state = self._store.is_lost or any(self._state_map.values())
            try:
                self._learn_parameters()  # state that is about to go is not converted to what the new groups say
                incoming = state_dicts.check_entries(
                    match.entries, self._placement.format_for, self._name_of, recognise
                )
                state_dicts.warn_of_changes(incoming.values())
                if has_state and verify is not None:
                    verify()
            except BaseException:
                self.param_groups = before
                raise
            foreign = {key: entry for key, entry in match.entries.items() if not isinstance(key, Tensor)}
            try:
                self._state_map.clear()
                self._placement.write(incoming)
                self._state_map.update(foreign)
            except BaseException as error:
                self.param_groups = before
                self._state_map.clear()
                if has_state:
                    self._store.lose(
                        StateLostError(
                            f"loading ended midway ({type(error).__name__}: {error}) and the state before it is gone; "
                            "load again, or clear optimizer.state"
                        )
                    )
                raise

    @contextmanager
    def settled(self) -> Iterator[Store]:
        """Hold the state still while the store is read: everything assigned is in pages, and nothing steps."""
        with self._store.lock, torch.no_grad():
            self._begin()
            yield self._store

    def __getstate__(self) -> dict[str, Any]:
        """Return configuration and a snapshot of the state, for pickle and deepcopy; a copy has pages of its own."""
        ours = {id(param) for group in self.param_groups for param in group["params"]}
        with self._store.lock, torch.no_grad():
            self._store.settle()
            return {
                "defaults": self.defaults,
                "param_groups": self.param_groups,
                "state": [(key, entry.snapshot()) for key, entry in self._state_map.items()],
                "options": self._options,
                "overrides": [pair for pair in GlobalOptimManager.get_instance().overrides() if id(pair[0]) in ours],
                "pager": self._pager_given,
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        entries, options, pager = state.pop("state"), state.pop("options"), state.pop("pager")
        for param, config in state.pop("overrides", ()):
            GlobalOptimManager.get_instance().override_config(param, key_value_dict=config)
        self._build(options, pager)
        super().__setstate__(state)
        self._state_map.update(entries)
        with self._store.lock, torch.no_grad():
            self._begin()

    # -- the learning rate, statistics, the end -----------------------------------------------------------------------

    @property
    def pager(self) -> Pager:
        """The pager whose pages hold the state; other optimizers may share it."""
        return self._store.pager

    @property
    def lr(self) -> float:
        """The learning rate of the first group; `set_lr` sets that of all."""
        return number(self.param_groups[0]["lr"], "lr")

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group; a tensor lr keeps its object and takes the value.

        Raises:
            TypeError, ValueError: `lr` is no finite number of at least 0.
        """
        value = number(lr, "lr")
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def memory_stats(self) -> MemoryStats:
        """Return where this optimizer's state is, in bytes and pages, and the budget it shares."""
        return memory_stats(self._store, {p.device for group in self.param_groups for p in group["params"]})

    def paging_stats(self) -> PagingStats:
        """Return what its pagers did since the last reset: faults, hits, bytes by tier, seconds stalled.

        Pagers are shared by optimizers with equal budgets, and so are these counts. A difference of two is what was
        done between them.
        """
        return paging_stats(self._store)

    def step_stats(self) -> PagingStats:
        """Return what its pagers did during the last `step()`, and in calls of `step_param` since the one before it.

        Reads that a step began for the next one are its own.
        """
        return self._step_stats

    @property
    def is_stepping(self) -> bool:
        """Whether a step is under way, in whichever thread: then pages that are pinned are being updated."""
        return self._is_stepping

    def reset_paging_stats(self) -> None:
        """Count from zero again."""
        for device_pager in self._store.pager.devices().values():
            device_pager.reset_stats()

    def flush(self) -> None:
        """Write every changed page to its home and wait until it is there.

        Nothing needs this: pages that others want to read are read from wherever they are.

        Raises:
            StateLostError: a page could not be written.
        """
        with self._store.lock:
            self._begin()
            for device_pager in self._store.pager.devices().values():
                device_pager.flush()

    def close(self) -> None:
        """Give all pages, files and threads back; the optimizer cannot step any more. May be called again."""
        with self._store.lock:
            self._reports.close()
            self._state_map.clear()
            self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# Torch's own, without what keeps the compiler away from it: that imports the compiler, two seconds for a constructor.
_add_param_group: Callable[[torch.optim.Optimizer, dict[str, Any]], None] = getattr(
    torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.Optimizer.add_param_group
)


def _first(result: _T | None, otherwise: _T) -> _T:
    """Return what a hook returned, or what it was given and may have changed in place."""
    return otherwise if result is None else result


def _refuse_capture() -> None:
    """Raise if what the current stream is given is recorded and not done: every step has numbers of its own."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        raise RuntimeError(
            "a CUDA graph cannot capture an optimizer whose pages move and whose step counts on the host; "
            "capture forward and backward, and call step() after the replay"
        )
