"""The manifest: a small JSON file that says what a checkpoint is. What it does not name is no part of the checkpoint.

    {"pagedopt_checkpoint": 1, "checksum": "<xxh3_128 of all that follows this line>",
    "written_by": ..., "codec": ..., "param_groups": [...], "files": [...], "params": [...]}

`params` has, for each parameter with state, its shape, format, step and file, and a checksum for each of its tensors.
Everything else about a file follows from that (see `checkpoint.layout`), so nothing in it is believed twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from pagedopt.checkpoint.layout import FileLayout, SavedParam, lay_out, tensors_of
from pagedopt.codecs.base import CODEC_VERSION, StateFormat
from pagedopt.errors import CheckpointError
from pagedopt.units import format_bytes

NAME = "pagedopt.json"
VERSION = 1
MAX_NBYTES = 256 << 20
"""Of a manifest: room for half a million parameters. A larger one is refused unread."""

_FIRST_LINE = re.compile(rb'\{"pagedopt_checkpoint": (\d{1,9}), "checksum": "([0-9a-f]{32})",\n')
_DATA_FILE = re.compile(r"state-[0-9a-f]{16}-\d{5}\.safetensors")
_MAX_TENSOR_NUMEL = 4096
_FORMATS = {state_format.name.lower(): state_format for state_format in StateFormat}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        written_by: name and version of the program.
        codec: name and version of the 8-bit codecs.
        groups: parameter groups, as in a state dict.
        files: the names of the data files.
        params: in the order in which they lie in the files.
        checksums: xxh3_128 of each tensor in hexadecimal, by parameter and key.
    """

    written_by: str
    codec: str
    groups: list[dict[str, Any]]
    files: list[str]
    params: list[SavedParam]
    checksums: dict[tuple[int, str], str]

    def layouts(self) -> list[FileLayout]:
        """Return the layout of each file."""
        of_file: list[list[SavedParam]] = [[] for _ in self.files]
        for param in self.params:
            of_file[param.file].append(param)
        return [lay_out(params) for params in of_file]


def data_file_name(save_id: str, index: int) -> str:
    """Return the name of a data file; `save_id`, 16 hexadecimal digits, is another one for every save."""
    return f"state-{save_id}-{index:05d}.safetensors"


def is_data_file(name: str) -> bool:
    """Return whether this is the name of a data file."""
    return _DATA_FILE.fullmatch(name) is not None


def labels_of(groups: list[dict[str, Any]]) -> dict[int, str]:
    """Return what the tensors of each parameter are called after: names where all have one of their own."""
    ids = [number for group in groups for number in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    has_names = len(names) == len(ids) == len(set(names)) and all(isinstance(name, str) for name in names)
    return dict(zip(ids, names if has_names else map(str, ids), strict=True))


# -- writing -----------------------------------------------------------------------------------------------------------


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of the manifest file.

    Raises:
        CheckpointError: a group holds a value that JSON cannot keep, or there are too many parameters.
    """
    body = {
        "written_by": manifest.written_by,
        "codec": manifest.codec,
        "param_groups": [_encode_group(index, group) for index, group in enumerate(manifest.groups)],
        "files": manifest.files,
        "params": [_encode_param(param, manifest.checksums) for param in manifest.params],
    }
    rest = json.dumps(body, indent=0, separators=(",", ": ")).encode()[2:]
    first = f'{{"pagedopt_checkpoint": {VERSION}, "checksum": "{xxh3_128_hexdigest(rest)}",\n'
    if len(first) + len(rest) > MAX_NBYTES:
        raise CheckpointError(
            f"the manifest of {len(manifest.params)} parameters is larger than {format_bytes(MAX_NBYTES)}"
        )
    return first.encode() + rest


def _encode_param(param: SavedParam, checksums: dict[tuple[int, str], str]) -> dict[str, Any]:
    tensors = tensors_of(param.shape, param.state_format, has_gnorms=param.has_gnorms)
    return {
        "id": param.id,
        "shape": list(param.shape),
        "format": param.state_format.name.lower(),
        "step": param.step,
        "file": param.file,
        "tensors": {tensor.key: checksums[param.id, tensor.key] for tensor in tensors},
    }


def _encode_group(index: int, group: dict[str, Any]) -> dict[str, Any]:
    for key, value in group.items():
        if not isinstance(key, str) or not _is_keepable(value):
            raise CheckpointError(
                f"param_groups[{index}][{key!r}] is {value!r}, which a checkpoint cannot keep; it keeps numbers, text, "
                "small tensors, and lists, tuples and dicts of them: remove it from the group before saving"
            )
    return {key: _encode_value(value) for key, value in group.items()}


def _is_keepable(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() <= _MAX_TENSOR_NUMEL and not value.is_complex() and value.layout is torch.strided
    if isinstance(value, (list, tuple)):
        return all(map(_is_keepable, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_keepable(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _encode_value(value: Any) -> Any:
    """Return a keepable value as JSON: what JSON has not is an object with the name of its kind."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, tuple):
        return {"tuple": [_encode_value(item) for item in value]}
    if isinstance(value, list):
        return [_encode_value(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode_value(item) for key, item in value.items()}}
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        numbers = [_encode_value(number) for number in value.detach().reshape(-1).tolist()]
        return {"tensor": {"dtype": dtype, "shape": list(value.shape), "values": numbers}}
    return value


# -- reading -----------------------------------------------------------------------------------------------------------


def decode(raw: bytes) -> Manifest:
    """Return the manifest that `raw`, the whole file, is.

    Raises:
        CheckpointError: saying what is wrong with it.
    """
    first = _FIRST_LINE.match(raw)
    if first is None:
        raise CheckpointError("it does not begin as the manifest of a pagedopt checkpoint does")
    if int(first[1]) != VERSION:
        raise CheckpointError(f"it is of version {int(first[1])}, and this pagedopt reads version {VERSION}")
    rest = raw[first.end() :]
    if xxh3_128_hexdigest(rest) != first[2].decode():
        raise CheckpointError("it is damaged: its checksum differs")
    try:
        return _manifest(_object(_parse(b"{" + rest), "it"))
    except RecursionError:
        raise CheckpointError("it is nested too deeply") from None


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except ValueError as error:
        raise CheckpointError(f"it is no JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _manifest(body: dict[str, Any]) -> Manifest:
    codec = _text(body, "codec")
    if codec != CODEC_VERSION:
        raise CheckpointError(f"its 8-bit state is of codec {codec!r}; this pagedopt reads {CODEC_VERSION!r}")
    groups = [_decode_group(group) for group in _list(body, "param_groups")]
    ids = [number for group in groups for number in group["params"]]
    if len(set(ids)) != len(ids):
        raise CheckpointError("a parameter is in param_groups twice")
    files = _list(body, "files")
    if not all(isinstance(name, str) and is_data_file(name) for name in files) or len(set(files)) != len(files):
        raise CheckpointError("the names of its files are none that a checkpoint has")
    labels = labels_of(groups)
    params, checksums = [], {}
    for position, entry in enumerate(_list(body, "params")):
        param, tensors = _decode_param(_object(entry, f"params[{position}]"), labels, len(files))
        params.append(param)
        checksums.update({(param.id, key): checksum for key, checksum in tensors.items()})
    if len({param.id for param in params}) != len(params):
        raise CheckpointError("a parameter is in params twice")
    return Manifest(_text(body, "written_by"), codec, groups, files, params, checksums)


def _decode_param(entry: dict[str, Any], labels: dict[int, str], num_files: int) -> tuple[SavedParam, dict[str, str]]:
    number, file = _whole(entry, "id"), _whole(entry, "file")
    if number not in labels:
        raise CheckpointError(f"parameter {number} is in no group")
    if file >= num_files:
        raise CheckpointError(f"parameter {number} is in file {file} of {num_files}")
    shape = _shape(entry)
    state_format = _FORMATS.get(_text(entry, "format"))
    if state_format is None:
        raise CheckpointError(f"parameter {number} is of format {entry['format']!r}; known are {', '.join(_FORMATS)}")
    step = entry.get("step")
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step < 2**53:
        raise CheckpointError(f"the step of parameter {number} is {step!r}")
    tensors = _object(entry.get("tensors"), f"tensors of parameter {number}")
    has_gnorms = "gnorm_history" in tensors
    keys = [tensor.key for tensor in tensors_of(shape, state_format, has_gnorms=has_gnorms)]
    if sorted(tensors) != sorted(keys) or not all(isinstance(checksum, str) for checksum in tensors.values()):
        raise CheckpointError(f"the tensors of parameter {number} are not {', '.join(keys)}, each with a checksum")
    return SavedParam(number, labels[number], shape, state_format, float(step), has_gnorms, file), tensors


def _decode_group(group: Any) -> dict[str, Any]:
    group = _object(group, "a group")
    decoded = {key: _decode_value(value) for key, value in group.items()}
    params = decoded.get("params")
    if not isinstance(params, list) or not all(_is_whole(number) for number in params):
        raise CheckpointError("the params of a group are no list of numbers")
    names = decoded.get("param_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("the param_names of a group are no list of names")
    return decoded


def _decode_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        decoder = _KINDS.get(kind)
        if decoder is not None:
            return decoder(content)
    raise CheckpointError(f"a group has {value!r:.100}, which is no value that is known")


def _decode_float(content: Any) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise CheckpointError(f"a group has the number {content!r:.100}")
    return float(content)


def _decode_tuple(content: Any) -> tuple[Any, ...]:
    if not isinstance(content, list):
        raise CheckpointError("a tuple in a group is no list")
    return tuple(_decode_value(item) for item in content)


def _decode_dict(content: Any) -> dict[str, Any]:
    return {key: _decode_value(item) for key, item in _object(content, "a dict in a group").items()}


def _decode_tensor(content: Any) -> Tensor:
    content = _object(content, "a tensor in a group")
    dtype = getattr(torch, _text(content, "dtype"), None)
    shape, values = _shape(content), [_decode_value(value) for value in _list(content, "values")]
    if not isinstance(dtype, torch.dtype) or math.prod(shape) != len(values) or len(values) > _MAX_TENSOR_NUMEL:
        raise CheckpointError("a tensor in a group has a type, shape and values that do not go together")
    try:
        return torch.tensor(values, dtype=dtype, device="cpu").view(shape)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"a tensor in a group cannot be made: {error}") from None


_KINDS: dict[str, Callable[[Any], Any]] = {
    "float": _decode_float,
    "tuple": _decode_tuple,
    "dict": _decode_dict,
    "tensor": _decode_tensor,
}


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is no object")
    return value


def _list(entry: dict[str, Any], key: str) -> list[Any]:
    value = entry.get(key)
    if not isinstance(value, list):
        raise CheckpointError(f"{key} is no list")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"{key} is no text")
    return value


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if not _is_whole(value):
        raise CheckpointError(f"{key} is no number from 0 on")
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _shape(entry: dict[str, Any]) -> tuple[int, ...]:
    shape = _list(entry, "shape")
    if len(shape) > 64 or not all(_is_whole(size) for size in shape) or math.prod(shape) >= 1 << 56:
        raise CheckpointError(f"the shape {shape!r:.100} is none that a tensor has")
    return tuple(shape)
