"""What trains, as names, shapes and dtypes: from a model, a file's header, a config, or a number. No tensor is made.

| given                              | read                                                            |
|------------------------------------|-----------------------------------------------------------------|
| a `torch.nn.Module`                | its parameters that require gradients (meta tensors will do)    |
| parameters, groups, an optimizer   | theirs; options of a group such as `optim_bits` hold            |
| a folder                           | its safetensors files, else its `config.json`                   |
| `*.safetensors`, or an index       | the headers                                                     |
| `config.json`, or what is in one   | the shapes of its family, else of what transformers makes of it |
| a number, or text such as `"7B"`   | as many values, as if they were one vector                      |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from pagedopt.costs.families import is_known, weights_of_config
from pagedopt.costs.meta_model import model_of_config
from pagedopt.costs.weights import SizesError, Weight
from pagedopt.optim.overrides import GlobalOptimManager
from pagedopt.units import parse_count

_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_MAX_HEADER_NBYTES = 100_000_000
_INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"


def weights_of(source: Any, dtype: torch.dtype | None = None) -> tuple[Weight, ...]:
    """Return the parameters that train of anything that the table above names.

    Args:
        source: what is given.
        dtype: of all parameters; None: what `source` says, float32 where it says nothing.

    Raises:
        SizesError: it cannot be read, is of no known kind, or nothing in it trains.
        TypeError: it is no source at all.
    """
    found = tuple(_found(source))
    if not found:
        raise SizesError("nothing trains: no parameter there requires a gradient")
    if dtype is None:
        return found
    return tuple(Weight(w.name, w.shape, dtype, w.options, w.linear) for w in found)


_TABLES = ("embed", "wte", "wpe", "norm")


def _found(source: Any) -> Iterable[Weight]:
    if isinstance(source, nn.Module):
        return _of_module(source)
    if isinstance(source, bool):
        raise TypeError(f"a model or its sizes must be given, got {source!r}")
    if isinstance(source, int) or (isinstance(source, float) and source.is_integer()):
        return _of_count(str(int(source)))
    if isinstance(source, torch.optim.Optimizer):
        return _of_parameters(source.param_groups)
    if isinstance(source, (str, os.PathLike)):
        return _of_text(os.fspath(source))
    if isinstance(source, Mapping):
        return _of_config(source, "the config")
    if hasattr(source, "to_dict") and hasattr(source, "model_type"):  # a transformers config
        return _of_config(source.to_dict(), "the config")
    if isinstance(source, Iterable):
        return _of_parameters(source)
    raise TypeError(f"a model or its sizes must be given, got {type(source).__name__}")


# -- a model ----------------------------------------------------------------------------------------------------------


def _of_module(model: nn.Module) -> Iterator[Weight]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {
        id(module.weight): (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in tables  # an output head may be the embedding
    }
    overrides = _overrides()
    for name, param in model.named_parameters():
        if param.requires_grad:
            yield _of_parameter(name, param, overrides.get(id(param), {}), linears.get(id(param)))


def _of_parameters(given: Iterable[Any]) -> Iterator[Weight]:
    """Yield what an optimizer's first argument has: parameters, named ones, or groups; weights as they are."""
    overrides = _overrides()
    for number, entry in enumerate(given):
        if isinstance(entry, Weight):
            yield entry
            continue
        group = entry if isinstance(entry, Mapping) else {"params": [entry]}
        options = {key: group[key] for key in _OPTIONS if key in group}
        params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for position, param in enumerate(params):
            name, tensor = param if isinstance(param, tuple) else (f"{number}.{position}", param)
            yield _of_parameter(name, tensor, {**options, **overrides.get(id(tensor), {})})


_OPTIONS = ("optim_bits", "min_8bit_size", "block_wise")


def _overrides() -> dict[int, dict[str, Any]]:
    return {id(param): config for param, config in GlobalOptimManager.get_instance().overrides()}


def _of_parameter(
    name: str, param: object, options: Mapping[str, Any], linear: tuple[int, int] | None = None
) -> Weight:
    if not isinstance(param, Tensor):
        raise TypeError(f"{name!r} is no parameter but {type(param).__name__}")
    local = getattr(param, "_local_tensor", param)  # of a DTensor, the part that is here
    kept = tuple((key, options[key]) for key in _OPTIONS if key in options)
    return Weight(name, tuple(local.shape), param.dtype, kept, linear)


# -- a config ---------------------------------------------------------------------------------------------------------


def _of_config(config: Mapping[str, Any], name: str) -> Iterable[Weight]:
    if not isinstance(config.get("model_type"), str):
        raise SizesError(
            f"{name} has no 'model_type', so it is no config of a model; give a safetensors file, or its size"
        )
    return weights_of_config(config, name) if is_known(config) else _of_module(model_of_config(config, name))


# -- a number ---------------------------------------------------------------------------------------------------------


def _of_count(text: str) -> Iterator[Weight]:
    yield Weight("params", (parse_count(text, name="params"),))


# -- files ------------------------------------------------------------------------------------------------------------


def _of_text(text: str) -> Iterable[Weight]:
    path = Path(text).expanduser()
    if not path.exists():
        try:
            return tuple(_of_count(text))
        except ValueError:
            raise SizesError(
                f"there is no file or folder {text!r}, and it is no number of parameters such as 7B; of a model on a "
                "hub, download the config.json"
            ) from None
    return _of_path(path)


def _of_path(path: Path) -> Iterable[Weight]:
    if path.is_dir():
        return _of_path(_in_folder(path))
    if path.suffix == ".safetensors":
        return _of_safetensors([path])
    if path.suffix != ".json":
        raise SizesError(f"{str(path)!r} is neither a config.json nor a safetensors file or index")
    content = _json(path)
    if "weight_map" in content:
        return _of_safetensors(_shards(path, content))
    return _of_config(content, repr(str(path)))


def _in_folder(folder: Path) -> Path:
    """Return what says the sizes; a clone without its large files has the config.json."""
    found = [folder / name for name in (_INDEX, "model.safetensors", "config.json") if (folder / name).is_file()]
    if not found:
        raise SizesError(f"{str(folder)!r} has no {_INDEX}, model.safetensors or config.json")
    return next((path for path in found if _is_whole(path)), found[0])


def _is_whole(path: Path) -> bool:
    """Return whether what `path` needs is there: the files that an index names, and no pointers in their place."""
    if path.name == "config.json":
        return True
    needed = _shards_of(path, _json(path)) if path.name == _INDEX else [path]
    return all(each.is_file() and not _is_pointer(each) for each in needed)


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SizesError(f"cannot read {str(path)!r}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise SizesError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise SizesError(f"{str(path)!r} is no JSON object")
    return content


def _shards_of(index: Path, content: Mapping[str, Any]) -> list[Path]:
    """Return the files that an index names."""
    names = content.get("weight_map")
    if not isinstance(names, Mapping):
        raise SizesError(f"{str(index)!r} is no index of safetensors: it has no 'weight_map'")
    return [index.parent / Path(name).name for name in dict.fromkeys(map(str, names.values()))]


def _shards(index: Path, content: Mapping[str, Any]) -> list[Path]:
    shards = _shards_of(index, content)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise SizesError(
            f"{str(index)!r} has no shapes, those are in its {len(shards)} files, of which {missing[0]} is not beside "
            "it; give the config.json instead"
        )
    return shards


def _of_safetensors(paths: Iterable[Path]) -> Iterator[Weight]:
    """Yield the floating-point tensors of the files: quantized ones do not train."""
    for path in paths:
        for name, entry in _header(path).items():
            if name == "__metadata__":
                continue
            try:
                dtype, shape = _SAFETENSORS_DTYPES.get(entry["dtype"]), tuple(map(int, entry["shape"]))
            except (KeyError, TypeError, ValueError):
                raise SizesError(f"{str(path)!r} is no safetensors file: {name!r} has no dtype and shape") from None
            if dtype is not None:
                yield Weight(name, shape, dtype, (), _linear_of(name, shape))


def _linear_of(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    is_layer = len(shape) == 2 and name.endswith(".weight") and not any(word in name for word in _TABLES)
    return (shape[1], shape[0]) if is_layer else None


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            header = json.loads(_header_bytes(file))
    except OSError as error:
        raise SizesError(f"cannot read {str(path)!r}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise SizesError(f"{str(path)!r} is no safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise SizesError(f"{str(path)!r} is no safetensors file: its header is no JSON object")
    return header


def _header_bytes(file: BinaryIO) -> bytes:
    start = file.read(8)
    if start == _POINTER[:8]:
        raise ValueError("it is a pointer of git-lfs, which stands for the file; give the config.json instead")
    length = int.from_bytes(start, "little")
    if not 0 < length <= _MAX_HEADER_NBYTES:
        raise ValueError(f"its header would be {length} bytes long")
    header = file.read(length)
    if len(header) < length:
        raise ValueError(f"it ends in its header, after {len(header)} of {length} bytes")
    return header
