"""How a sentence-transformers folder pools token states into a sentence embedding: modules.json and what it names."""

from pathlib import Path, PurePosixPath
from typing import Any

from tfm.errors import CheckpointError

from ..fields import Fields, shown
from ..json_file import read_json, read_object
from ..pooling import POOLINGS

_OLDER = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}
_MODES = {**{name: name for name in POOLINGS}, **_OLDER, "weightedmean_tokens": "weightedmean"}
"""sentence-transformers' names, new and old → ours."""


def read_pooling(folder: Path) -> dict[str, Any]:
    """Read `pooling` and `normalize` for a `TransformerConfig`; empty where there is no modules.json."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    options: dict[str, Any] = {}
    modules = read_json(path)
    if not isinstance(modules, list):
        raise CheckpointError(f"{path} holds a {type(modules).__name__}, not a list")
    if not modules:
        raise CheckpointError(f"{path} names no modules that would make an embedding; remove or mend it")
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise CheckpointError(f"{path}: a module is {shown(module)}, not a dict with a type and a path")
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            options["pooling"] = _read_mode(_inside(path, module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            options["normalize"] = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"{path}: the module {shown(module['type'])[1:-1]} is not supported; known: Transformer, Pooling, "
                "Normalize"
            )
    return options


def _inside(path: Path, name: object) -> Path:
    """Give the folder of a module, which is within that of modules.json."""
    # 255 bytes are the most that a file system allows a name, and a path of ours that is as long helps nobody.
    if (
        not isinstance(name, str)
        or PurePosixPath(name).is_absolute()
        or ".." in name
        or "\0" in name
        or len(name) > 255
    ):
        raise CheckpointError(f"{path}: a module's path is {shown(name)}, which is no folder beside it")
    return path.parent / name


def _modes(values: Fields) -> list[str]:
    if "pooling_mode" in values.values:  # newer sentence-transformers: one name, or a list of names
        named = values.values["pooling_mode"]
        return values.texts("pooling_mode") if isinstance(named, list) else [shown(named).strip("'")]
    # Older: a boolean for each.
    known = [name for name in values.values if name.startswith("pooling_mode_")]
    return [name.removeprefix("pooling_mode_") for name in known if values.flag(name)]


def _read_mode(file: Path) -> str:
    values = Fields(file, "pooling", read_object(file))
    modes = _modes(values)
    if len(modes) != 1 or modes[0] not in _MODES:
        asked = shown(" + ".join(modes) or "nothing")[1:-1]
        raise CheckpointError(f"{file}: pooling by {asked} is not supported; known: {', '.join(POOLINGS)}")
    if not values.flag("include_prompt", True):
        raise CheckpointError(f"{file}: include_prompt leaves prompts out of what is pooled, which is not supported")
    return _MODES[modes[0]]
