"""Who the parameters of an optimizer are: their names, what holds for each, and the plans made of them.

Groups are plain dicts that schedulers, frameworks and people change between steps. `refresh` sees what changed by
comparing objects, which costs nanoseconds a parameter, and everything else here is made anew only then.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pagedopt.optim.arguments import StateOptions
from pagedopt.optim.overrides import GlobalOptimManager
from pagedopt.optim.plan import Plan, Source
from pagedopt.optim.store import Store

_FORMAT_CHOICES = ("optim_bits", "min_8bit_size", "block_wise", "percentile_clipping", "amsgrad")
"""What a group may say of how state is kept; looked at again whenever it changed."""


class Parameters:
    """The parameters in an optimizer's groups, as of the last `refresh`.

    Args:
        options: how state is kept where neither a group nor an override says otherwise.
        store: where their state is.
    """

    def __init__(self, options: StateOptions, store: Store) -> None:
        self._options = options
        self._store = store
        self._groups: list[dict[str, Any]] = []
        self._resolved: dict[int, tuple[Source, StateOptions]] = {}
        self._plans: dict[int | None, list[Plan]] = {}
        self._versions = (-1, -1)
        self._choices: list[list[Any]] = []
        self.all: list[Tensor] = []
        """Every parameter, in the order of the groups."""
        self.version = 0
        """Moves when groups or overrides may say something else of how state is kept."""

    def refresh(self, groups: list[dict[str, Any]]) -> list[Tensor]:
        """Learn what changed in groups, overrides or state; return the parameters that have state and are gone."""
        manager = GlobalOptimManager.get_instance()
        found = [param for group in groups for param in group["params"]]
        choices = [[group.get(name) for name in _FORMAT_CHOICES] for group in groups]
        same = _are_same(found, self.all) and _are_same(groups, self._groups) and choices == self._choices
        versions = (manager.version, self._store.version)
        if same and versions == self._versions:
            return []
        if not same or versions[0] != self._versions[0]:
            self._resolved = self._resolve(groups, {id(param): config for param, config in manager.overrides()})
            self.all, self._groups, self._choices = found, list(groups), choices
            self.version += 1
        self._plans.clear()
        self._versions = versions
        return [param for param in self._store.records if param not in self]

    def is_fresh_for(self, param: Tensor, groups: list[dict[str, Any]]) -> bool:
        """Return whether `refresh` would learn nothing about `param`, without a look at every other parameter."""
        return (
            self._versions == (GlobalOptimManager.get_instance().version, self._store.version)
            and param in self
            and _are_same(groups, self._groups)
            and sum(len(group["params"]) for group in groups) == len(self.all)
            and [[group.get(name) for name in _FORMAT_CHOICES] for group in groups] == self._choices
        )

    def _resolve(
        self, groups: list[dict[str, Any]], overrides: Mapping[int, dict[str, Any]]
    ) -> dict[int, tuple[Source, StateOptions]]:
        """Return what holds for each parameter, by its `id`.

        Raises:
            TypeError, ValueError: a group says something wrong, or has a parameter that was there before.
        """
        resolved: dict[int, tuple[Source, StateOptions]] = {}
        for index, group in enumerate(groups):
            plain, options = Source(group, {}), self._options.overlaid(StateOptions.parse(group))
            for position, param in enumerate(group["params"]):
                if id(param) in resolved:
                    raise ValueError(
                        f"parameter {position} of group {index} is in the groups twice, and would be updated twice a "
                        "step; name each parameter once"
                    )
                override = overrides.get(id(param))
                if override is None:
                    resolved[id(param)] = plain, options
                else:
                    resolved[id(param)] = Source(group, override), options.overlaid(override)
        return resolved

    def __contains__(self, param: Tensor) -> bool:
        return id(param) in self._resolved

    def source_of(self, param: Tensor) -> Source:
        """Return where the hyperparameters of `param` are read."""
        return self._resolved[id(param)][0]

    def options_of(self, param: Tensor) -> StateOptions:
        """Return how the state of `param` is to be kept."""
        return self._resolved[id(param)][1]

    # -- names --------------------------------------------------------------------------------------------------------

    def name_of(self, param: Tensor) -> str:
        """Return what to call `param` in a message."""
        for index, group in enumerate(self._groups):
            for position, other in enumerate(group["params"]):
                if other is param:
                    names = group.get("param_names")
                    return repr(names[position]) if names else f"parameter {position} of group {index}"
        return "a tensor that is no parameter of this optimizer"

    def named(self, name: str) -> Tensor:
        """Return the parameter of this name.

        Raises:
            KeyError: there is none; the message lists the names there are.
        """
        known: dict[str, Tensor] = {}
        for group in self._groups:
            known.update(zip(group.get("param_names", ()), group["params"], strict=False))
        if name not in known:
            listed = ", ".join(map(repr, known)) or "none: pass model.named_parameters() to have names"
            raise KeyError(f"no parameter {name!r}; known are {listed}")
        return known[name]

    # -- plans --------------------------------------------------------------------------------------------------------

    def plans_of(self, param: Tensor | None) -> list[Plan]:
        """Return the plans, one a device, of one parameter or of all (None) that have state."""
        if self._versions != (GlobalOptimManager.get_instance().version, self._store.version):
            self.refresh(self._groups)
        key = None if param is None else id(param)
        plans = self._plans.get(key)
        if plans is None:
            plans = self._plans[key] = self._make_plans(self.all if param is None else [param])
        return plans

    def _make_plans(self, params: Sequence[Tensor]) -> list[Plan]:
        by_device: dict[torch.device, list[Tensor]] = {}
        for param in params:
            record = self._store.records.get(param)
            if record is not None:
                by_device.setdefault(record.device, []).append(param)
        plans = []
        for device, placed in by_device.items():
            records = [self._store.records[param] for param in placed]
            sources = [self.source_of(param) for param in placed]
            clippings = [self.options_of(param).percentile_clipping for param in placed]
            plans.append(Plan(device, self._store.pager.on(device), placed, records, sources, clippings))
        return plans

    def is_placed(self, params: Sequence[Tensor]) -> bool:
        """Return whether one parameter, or all, have state that fits them: the usual case, told quickly."""
        plans = self._plans.get(id(params[0]) if len(params) == 1 else None, ())
        if len(plans) != 1 or plans[0].is_distributed or len(plans[0].params) != len(params):
            return False
        return plans[0].fits(params)


def _are_same(left: Sequence[object], right: Sequence[object]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))
