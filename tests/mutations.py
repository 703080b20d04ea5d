"""Damaged and hostile checkpoints, made from whole ones by a seeded generator.

damaged     bytes changed, cut, added, moved, mixed up with another checkpoint's: what disks and people do
hostile     the manifest changed by somebody who knows the format, checksum and all
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from xxhash import xxh3_128_hexdigest

MANIFEST = "pagedopt.json"

Files = dict[str, bytes]


def damaged(files: Files, others: Files, rng: random.Random) -> tuple[Files, str]:
    """Return changed files, and what was done. `others` is another checkpoint of the same optimizer."""
    name = rng.choice(sorted(files))
    what: Callable[[bytes, random.Random], bytes] | str = rng.choice(WAYS)
    changed = dict(files)
    if what == "remove":
        del changed[name]
    elif what == "swap":
        other = rng.choice(sorted(files))
        changed[name], changed[other] = files[other], files[name]
    elif what == "mix":
        theirs = sorted(others)[sorted(files).index(name)] if name != MANIFEST else MANIFEST
        changed[name] = others[theirs]
    else:
        assert callable(what)
        changed[name] = what(files[name], rng)
        what = what.__name__
    return changed, f"{what} of {name}"


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 30))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 7, 8, len(data) - 1, rng.randrange(len(data))))]


def extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", b" ", b"}", rng.randbytes(100), data))


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    count = min(rng.choice((1, 8, 100, 512, 4096)), len(data) - start)
    filler = rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count), data[:count]))
    return data[:start] + filler + data[start + count :]


def remove_part(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 100, 512)) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice((b"0", b"\0", b",", b"[" * 20_000, rng.randbytes(64))) + data[start:]


def exchange(data: bytes, rng: random.Random) -> bytes:
    count = min(rng.choice((1, 16, 512)), len(data) // 2)
    first = rng.randrange(len(data) // 2 - count + 1)
    second = rng.randrange(len(data) // 2, len(data) - count + 1)
    out = bytearray(data)
    out[first : first + count], out[second : second + count] = out[second : second + count], out[first : first + count]
    return bytes(out)


def digit(data: bytes, rng: random.Random) -> bytes:
    """Change a digit: a number that is as good as before."""
    places = [index for index, byte in enumerate(data) if 48 <= byte <= 57]
    out = bytearray(data)
    out[rng.choice(places)] = rng.choice(b"0123456789") if places else 0
    return bytes(out)


WAYS: tuple[Any, ...] = (
    flip, flip, flip, cut, extend, overwrite, overwrite, remove_part, insert, exchange, digit, "remove", "swap", "mix"
)  # fmt: skip


def hostile(files: Files, rng: random.Random) -> tuple[Files, str]:
    """Return files whose manifest has something else somewhere, with the checksum that belongs to it."""
    body = manifest_body(files)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, key = rng.choice(list(_places(body)))
        value = copy.deepcopy(rng.choice(_VALUES))
        if rng.random() < 0.15:
            value = _deep(rng)
        if isinstance(place, dict) and rng.random() < 0.1:
            del place[key]
            said.append(f"without {key}")
        else:
            place[key] = value
            said.append(f"{key} = {value!r:.60}")
    return with_manifest(files, body), ", ".join(said)


def manifest_body(files: Files) -> dict[str, Any]:
    first, rest = files[MANIFEST].split(b"\n", 1)
    del first
    body: dict[str, Any] = json.loads(b"{" + rest)
    return body


def with_manifest(files: Files, body: Any) -> Files:
    """Return files with a manifest of that body and its right checksum."""
    rest = json.dumps(body).encode()[1:]
    first = f'{{"pagedopt_checkpoint": 1, "checksum": "{xxh3_128_hexdigest(rest)}",\n'
    return {**files, MANIFEST: first.encode() + rest}


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def _deep(rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice((5, 300))):
        value = [value] if rng.random() < 0.5 else {"dict": {"x": value}}
    return value


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.5, 1e308, 2**31, 2**53, 2**62, 2**63, 10**300, -(10**300), "", "x",
    "float32", "blockwise8", "../../etc/passwd", "/dev/zero", "pagedopt.json",
    "state-0000000000000000-00000.safetensors",
    [], [[]], {}, [0], [1, 2, 3], [2**40, 2**40], [2**31] * 60, [1] * 5000, {"tuple": 3}, {"tuple": [1]},
    {"float": "nan"}, {"float": "1e400"}, {"dict": {"a": 1}}, {"tensor": 1}, {"unknown": 1},
    {"tensor": {"dtype": "float32", "shape": [10**12], "values": []}},
    {"tensor": {"dtype": "load", "shape": [], "values": [1]}},
    {"tensor": {"dtype": "qint8", "shape": [1], "values": [1]}},
    {"tensor": {"dtype": "int8", "shape": [1], "values": [300]}},
    {"tensor": {"dtype": "float32", "shape": [2], "values": [1, "x"]}},
)  # fmt: skip
