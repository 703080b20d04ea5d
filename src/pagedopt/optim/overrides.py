"""Per-parameter overrides: bitsandbytes' `GlobalOptimManager`, with overrides that belong to the parameter object.

The usual use keeps an embedding's state in 32 bits:

    GlobalOptimManager.get_instance().register_module_override(model.embed, "weight", {"optim_bits": 32})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pagedopt.optim.arguments import StateOptions, check_hyperparameters

_KNOWN = ("lr", "betas", "eps", "weight_decay", "optim_bits", "min_8bit_size", "percentile_clipping", "block_wise")


class GlobalOptimManager:
    """The overrides of this process, one instance: `GlobalOptimManager.get_instance()`.

    An override belongs to the very parameter object it was made for, which is held weakly: it never reaches another
    model's parameter in the same position or with a reused id, and is gone with its parameter. An override made after a
    parameter's state exists applies from the next step on; state is then converted between 8 and 32 bits if need be.
    """

    _instance: GlobalOptimManager | None = None

    def __init__(self) -> None:
        if GlobalOptimManager._instance is not None:
            raise RuntimeError("call GlobalOptimManager.get_instance() instead")
        self._by_parameter: MutableMapping[Tensor, dict[str, Any]] = WeakTensorKeyDictionary()
        self._by_module: list[tuple[ref[nn.Module], str, dict[str, Any]]] = []
        self.version = 0

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """Return the one instance."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def register_parameters(self, params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> None:
        """Check that `params` are what an optimizer takes; accepted as bitsandbytes' scripts call it.

        There it is what ties an override to a position in the optimizer. Here an override holds for its parameter
        object wherever it is, registered or not, so there is nothing to remember.

        Raises:
            TypeError: something in it is neither a tensor nor a group of tensors.
        """
        for entry in params:
            tensors = entry["params"] if isinstance(entry, dict) else [entry]
            for tensor in [tensors] if isinstance(tensors, Tensor) else tensors:
                _check_parameter(tensor)

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: object = None,
        key_value_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """Override `key` (or all of `key_value_dict`) for one parameter or several.

        Keys: lr, betas, eps, weight_decay, optim_bits, min_8bit_size, percentile_clipping, block_wise.

        Raises:
            TypeError, ValueError: an unknown key, a bad value, nothing to override, or something that is no tensor.
        """
        if key is not None and key_value_dict is not None:
            raise ValueError(f"pass either key={key!r} or key_value_dict, not both")
        if key is None and key_value_dict is None:
            raise ValueError("pass a key and its value, or key_value_dict")
        config = _checked({key: value} if key is not None else dict(key_value_dict or {}))
        tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for tensor in tensors:
            _check_parameter(tensor)
        for tensor in tensors:
            self._by_parameter[tensor] = {**self._by_parameter.get(tensor, {}), **config}
        self.version += 1

    def register_module_override(self, module: nn.Module, param_name: str, config: Mapping[str, Any]) -> None:
        """Override `config` for whatever parameter `module` has under `param_name` when an optimizer first steps.

        Raises:
            TypeError, ValueError: an unknown key or a bad value.
            AttributeError: `module` has no such parameter.
        """
        if not isinstance(getattr(module, param_name), Tensor):
            raise TypeError(f"{param_name!r} of {type(module).__name__} is not a parameter")
        self._by_module.append((ref(module), param_name, _checked(config)))
        self.version += 1

    def overrides(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Return the overrides in force, each with its parameter; of two for one parameter the later wins."""
        found = list(self._by_parameter.items())
        self._by_module = [entry for entry in self._by_module if entry[0]() is not None]
        for module_ref, name, config in self._by_module:
            module = module_ref()
            parameter = getattr(module, name, None)
            if isinstance(parameter, Tensor):
                found.append((parameter, config))
        return found


def _check_parameter(tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a parameter, got {type(tensor).__name__}")


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in config if key not in _KNOWN]
    if unknown:
        raise ValueError(f"cannot override {', '.join(map(repr, unknown))}; known are {', '.join(_KNOWN)}")
    return {**check_hyperparameters(config), **StateOptions.parse(config)}
