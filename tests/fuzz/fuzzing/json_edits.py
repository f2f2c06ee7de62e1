"""Mutations of JSON: odd values in the place of others, keys lost, added and twice, nesting without end."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from .byte_edits import edit_bytes

DEEP = 100_000

_RAW: dict[str, str] = {
    "@deep list@": "[" * DEEP + "]" * DEEP,
    "@deep object@": '{"a":' * DEEP + "1" + "}" * DEEP,
    "@less deep@": "[" * 900 + "]" * 900,
    "@digits@": "9" * 5000,
    "@NaN@": "NaN",
    "@Infinity@": "Infinity",
    "@-Infinity@": "-Infinity",
    "@1e400@": "1e400",
    "@half@": r'"\ud800"',
    "@NUL@": r'"a\u0000b"',
}
"""Put in as strings, and replaced by what json.dumps cannot write."""

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, 2**53, 2**63 - 1, 2**63, 2**64, 10**30,
    -(2**63), -(2**64), 0.5, -0.0, 1.0, 1e-320, 1e308, -1e308, 1e30, "", "2", "a", "none", "../../etc/passwd",
    "/dev/zero", "a/b", "\x1b[31m", "é" * 9, "x" * 10_000, [], {}, [[]], [None], [{}], [0] * 1000, ["a", "a"],
    {"a": {}}, {"": None}, {"a": [1, {"b": None}]}, *_RAW,
]  # fmt: skip

Path = tuple[Any, ...]


def edit_json(rng: Random, data: bytes, hints: tuple[Any, ...] = ()) -> bytes:
    """Change a JSON file.

    Args:
        rng: What decides.
        data: The file.
        hints: Values that may mean something to who reads it.
    """
    if rng.random() < 0.12:
        return _edit_text(rng, data)
    try:
        return dump(edit_value(rng, json.loads(data), hints))
    except (ValueError, RecursionError):  # it was changed before
        return edit_bytes(rng, data)


def edit_value(rng: Random, content: Any, hints: tuple[Any, ...] = ()) -> Any:
    """Change a JSON value in one place."""
    places = list(_places(content))
    if not places or rng.random() < 0.02:
        return rng.choice(ODD)
    edits: list[Callable[..., None]] = [_replace] * 6 + [_delete, _rename, _add, _copy, _wrap, _near, _near, _stretch]
    rng.choice(edits)(rng, content, rng.choice(places), hints)
    return content


def dump(content: Any) -> bytes:
    """Write JSON, and in it what json.dumps cannot."""
    text = json.dumps(content, ensure_ascii=True)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.replace('@twice@"', '"').encode("utf-8", "surrogatepass")


def _places(content: Any, path: Path = ()) -> Any:
    """Every place in a value, as the keys that lead there."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _owner(content: Any, path: Path) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def _replace(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    _owner(content, path)[path[-1]] = rng.choice(hints if hints and rng.random() < 0.4 else ODD)


def _delete(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    del _owner(content, path)[path[-1]]


def _rename(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    owner = _owner(content, path)
    if isinstance(owner, dict):
        others = [key for key in owner if key != path[-1]]
        names = ["", "é", str(path[-1]) + "_", str(path[-1]).upper(), "../x", *others]
        owner[rng.choice(names)] = owner.pop(path[-1])


def _add(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    owner = _owner(content, path)
    value = rng.choice(hints if hints and rng.random() < 0.5 else ODD)
    if isinstance(owner, list):
        owner.insert(rng.randrange(len(owner) + 1), value)
    else:
        names = [name for name in hints if isinstance(name, str)] or ["a"]
        owner[rng.choice([*names, "auto_map", "a", str(path[-1]) + "@twice@"])] = value


def _copy(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    other = rng.choice(list(_places(content)))
    value = json.loads(json.dumps(_owner(content, other)[other[-1]]))
    _owner(content, path)[path[-1]] = value


def _wrap(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    owner = _owner(content, path)
    value = owner[path[-1]]
    owner[path[-1]] = rng.choice([[value], {"a": value}, str(value), [value, value]])


def _near(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    owner = _owner(content, path)
    value = owner[path[-1]]
    if isinstance(value, bool):
        owner[path[-1]] = not value
    elif isinstance(value, (int, float)):
        owner[path[-1]] = rng.choice([value + 1, value - 1, value * 2, -value, value / 2, value * 10**9, float(value)])
    elif isinstance(value, str):
        owner[path[-1]] = rng.choice([value[:-1], value + "x", value.upper(), value * 2, value.replace(".", "/")])
    elif isinstance(value, list):
        rng.shuffle(value)


def _stretch(rng: Random, content: Any, path: Path, hints: tuple[Any, ...]) -> None:
    owner = _owner(content, path)
    value = owner[path[-1]]
    if isinstance(value, list):
        owner[path[-1]] = value * rng.choice([0, 2, 3, 100])
    elif isinstance(value, dict):
        owner[path[-1]] = {f"{key}{number}": item for number in range(50) for key, item in value.items()}


def _edit_text(rng: Random, data: bytes) -> bytes:
    whole = [
        b"", b"null", b"[]", b"{}", b"0", b'""', b"[" * DEEP, b'{"a":' * DEEP, b"\xef\xbb\xbf" + data, data + data,
        data.decode("utf-8", "replace").encode("utf-16"), b"\xff" + data, data.replace(b":", b"", 1), data + b"\0",
        data.replace(b"}", b",}"), b"NaN", data.replace(b'"', b"'"),
    ]  # fmt: skip
    return rng.choice(whole) if rng.random() < 0.5 else edit_bytes(rng, data)
