"""A `config.json` whose fields are checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pagedopt.costs.weights import DTYPES, SizesError


class Fields:
    """A config; `name` is what to call it in an error."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._config = config
        self._name = name

    def count(self, *names: str, otherwise: int | None = None, least: int = 1) -> int:
        """Return the whole number that the first of these fields has that is there.

        Raises:
            SizesError: there is none and no `otherwise`, or it is less than `least`.
        """
        value = next((self._config[name] for name in names if self._config.get(name) is not None), otherwise)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            kind = "positive whole number" if least else "whole number"
            raise SizesError(f"{self._name} must have a {kind} as {names[0]!r}, it has {value!r}")
        return value

    def is_null(self, name: str) -> bool:
        """Return whether the field is there, and says that there is no such thing."""
        return name in self._config and self._config[name] is None

    def flag(self, name: str, *, otherwise: bool) -> bool:
        value = self._config.get(name)
        return otherwise if value is None else bool(value)

    def numbers(self, name: str) -> set[int]:
        """Return the whole numbers of a list; empty if there is none.

        Raises:
            SizesError: it is something else.
        """
        value = self._config.get(name) or []
        if not isinstance(value, list) or not all(isinstance(number, int) for number in value):
            raise SizesError(f"{self._name} must have a list of whole numbers as {name!r}, it has {value!r:.80}")
        return set(value)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the parameters are saved in; of a model in parts, that of its text."""
        parts = (self._config, self._config.get("text_config"))
        named = [part.get(key) for part in parts if isinstance(part, Mapping) for key in ("dtype", "torch_dtype")]
        text = next((name for name in named if name), "float32")
        return DTYPES.get(str(text).removeprefix("torch."), torch.float32)


def classes_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes that a config says it is for."""
    names = config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, (list, tuple)) else ()
