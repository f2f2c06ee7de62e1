"""How a sentence-transformers folder pools token states into a sentence embedding: modules.json and what it names."""

import json
from pathlib import Path
from typing import Any

from tfm.errors import CheckpointError

_MODES = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
"""sentence-transformers' names, new and old → ours."""


def read_pooling(folder: Path) -> dict[str, Any]:
    """Read `pooling` and `normalize` for a `TransformerConfig`; empty where there is no modules.json.

    Raises:
        CheckpointError: A module or a way of pooling is asked for that is not supported.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    options: dict[str, Any] = {}
    modules = _read_json(path, list)
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise CheckpointError(f"{path}: a module is {module!r}, not a dict with a type and a path")
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            options["pooling"] = _read_mode(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            options["normalize"] = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"{path}: the module {module['type']} is not supported; known: Transformer, Pooling, Normalize"
            )
    return options


def _read_mode(file: Path) -> str:
    values = _read_json(file, dict)
    if "pooling_mode" in values:  # newer sentence-transformers: one name, or a list of names
        named = values["pooling_mode"]
        modes = [str(mode) for mode in named] if isinstance(named, list) else [str(named)]
    else:  # older: a boolean for each
        modes = [
            name.removeprefix("pooling_mode_") for name, on in values.items() if name.startswith("pooling_mode_") and on
        ]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise CheckpointError(f"{file}: pooling by {' + '.join(modes) or 'nothing'} is not supported; known: mean, cls")
    return _MODES[modes[0]]


def _read_json(path: Path, expected: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or not JSON: {error}") from error
    if not isinstance(content, expected):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a {expected.__name__}")
    return content
