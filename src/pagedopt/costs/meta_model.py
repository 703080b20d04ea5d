"""The model that transformers makes of a `config.json`, on the meta device: exact for every family that it knows, also
for those with experts and for those that see and hear. No memory is taken, no weights are looked for, and no code that
comes with a model is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from pagedopt.costs.config_fields import Fields, classes_of
from pagedopt.costs.weights import SizesError

_KINDS = ("ImageTextToText", "CausalLM", "Seq2SeqLM", "MaskedLM")
"""What a config without `architectures` is taken for: the first of these that its family has."""

_NOT_ASKED = ("quantization_config", "auto_map")
"""Fields without a say in what trains: how the saved weights are stored, and code that comes with them."""

_OTHERWISE = "give a safetensors file or index of it, or --params 7e9"


def model_of_config(config: Mapping[str, Any], name: str) -> nn.Module:
    """Return the model that `config`, which has a `model_type`, describes, on the meta device.

    Args:
        config: the content of a `config.json`.
        name: what to call it in an error.

    Raises:
        SizesError: transformers is not installed, or makes no model of it.
    """
    transformers, families = _imported(config, name)
    if config["model_type"] not in families:
        raise SizesError(
            f"transformers {transformers.__version__} does not know the family {config['model_type']!r} of {name}; "
            f"{_OTHERWISE}"
        )
    fields = {key: value for key, value in config.items() if key not in _NOT_ASKED}
    try:
        with _quiet(transformers), torch.device("meta"):
            model: nn.Module = _made(transformers, fields)
    except Exception as error:  # what is in a config reaches all of transformers
        raise SizesError(
            f"transformers {transformers.__version__} makes no model of {name}: {_reason(error)}; {_OTHERWISE}"
        ) from error
    return model.to(Fields(config, name).dtype)


def _imported(config: Mapping[str, Any], name: str) -> tuple[Any, Container[str]]:
    """Return transformers, and the families that it knows."""
    kind = " or ".join(classes_of(config)) or "model"
    about = f"{name} is a {kind} of the family {config['model_type']!r}, whose shapes only transformers knows"
    try:
        transformers = import_module("transformers")
        families = transformers.CONFIG_MAPPING  # which imports half of it
    except Exception as error:  # an installation can be broken in any way
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "transformers"
        trouble = "is not installed; pip install it, or" if is_missing else f"cannot be imported: {_reason(error)};"
        raise SizesError(f"{about}, which {trouble} {_OTHERWISE}") from error
    return transformers, families


def _reason(error: Exception) -> str:
    """Return the first line of what an error says; some list all families."""
    return f"{str(error).strip().partition(chr(10))[0] or type(error).__name__:.300}"


def _made(transformers: Any, fields: dict[str, Any]) -> Any:
    made = transformers.AutoConfig.for_model(**fields)
    for name in classes_of(fields):
        model_class = getattr(transformers, name, None)
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return model_class(made)
    return _auto_class(transformers, made)(made)


def _auto_class(transformers: Any, made: Any) -> Callable[[Any], Any]:
    for kind in _KINDS:
        auto = getattr(transformers, f"AutoModelFor{kind}")
        if type(made) in auto._model_mapping:  # noqa: SLF001 - else one finds out by failing, for whatever reason
            return auto.from_config  # type: ignore[no-any-return]
    return transformers.AutoModel.from_config  # type: ignore[no-any-return]


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from giving advice about a model that nobody uses."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
