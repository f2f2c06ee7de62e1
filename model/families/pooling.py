"""How a sentence-transformers folder pools token states into a sentence embedding: modules.json and what it names."""

from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from tfm.errors import CheckpointError

from ..config import TransformerConfig
from ..fields import Fields, shown
from ..formats.files import find_file, read_file
from ..json_file import read_json, read_object
from ..pooling import POOLINGS, SentenceEmbedding
from .common import Weights

_OLDER = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}
_MODES = {**{name: name for name in POOLINGS}, **_OLDER, "weightedmean_tokens": "weightedmean"}
"""sentence-transformers' names, new and old → ours."""

_ORDER = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_DENSE = {"Tanh": "tanh", "Identity": None, "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid", "SiLU": "silu"}
"""Activations of Dense modules, by torch.nn's names → ours."""


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
        _read_module(path, kind, module, options)
    return options


def _read_module(path: Path, kind: str, module: dict[str, Any], options: dict[str, Any]) -> None:
    """Read one module into the options; modules that come in another order make another embedding."""
    # Each works on what those before it have made.
    late = {"Pooling": bool(options), "Dense": options.get("normalize", "pooling" not in options)}
    if late.get(kind):
        raise CheckpointError(
            f"{path}: the module {shown(module['type'])[1:-1]} is not supported where it stands; known is Transformer, "
            "Pooling, any number of Dense, Normalize, in this order"
        )
    if kind == "Pooling":
        options["pooling"] = _read_mode(_inside(path, module.get("path", "")) / "config.json")
    elif kind == "Dense":
        _read_dense(_inside(path, module.get("path", "")), options)
    elif kind == "Normalize":
        options["normalize"] = True
    elif kind != "Transformer":
        raise CheckpointError(
            f"{path}: the module {shown(module['type'])[1:-1]} is not supported; known: Transformer, Pooling, Dense, "
            "Normalize"
        )


def load_pooling(folder: Path, size: int) -> SentenceEmbedding | None:
    """Make what pools token states of a size as a folder's modules.json says; None: it says nothing of that.

    Raises:
        CheckpointError: It asks for what is not supported, or lacks weights that fit.
        ConfigError: It contradicts itself.
    """
    options = read_pooling(folder)
    if not options:
        return None
    made = SentenceEmbedding(TransformerConfig(kind="encoder", vocab_size=1, d_model=size, nhead=1, **options))
    weights = {name.removeprefix("embed."): weight.float() for name, weight in dense_weights(folder).items()}
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: the weights of its Dense modules do not fit: {reason}") from error
    return made.eval()


def dense_weights(folder: Path) -> Weights:
    """Read the weights of the Dense modules that modules.json names, under our names."""
    path, weights = folder / "modules.json", dict[str, Tensor]()
    dense = [module for module in read_json(path) if module["type"].rsplit(".", 1)[-1] == "Dense"]
    for number, module in enumerate(dense):
        for name, weight in read_file(find_file(_inside(path, module.get("path", "")))).items():
            weights[f"embed.layers.{number}.{str(name).removeprefix('linear.')}"] = weight
    return weights


def _read_dense(folder: Path, options: dict[str, Any]) -> None:
    """Read one dense layer: its size, and what it has in common with the others."""
    file = folder / "config.json"
    values = Fields(file, "Dense", read_object(file))
    values.supports("use_residual", [False])
    values.supports("module_input_name", ["sentence_embedding"])
    values.supports("module_output_name", ["sentence_embedding"])
    kind = values.text("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if kind not in _DENSE:
        raise values.error("activation_function", f"one of torch.nn's {', '.join(_DENSE)}")
    # One field each in the configuration, for all of them.
    shared = {"dense_activation": _DENSE[kind], "dense_bias": values.flag("bias", True)}
    if "dense_sizes" in options and any(options[name] != value for name, value in shared.items()):
        raise CheckpointError(f"{file}: Dense modules of different activations or biases are not supported")
    options |= {**shared, "dense_sizes": (*options.get("dense_sizes", ()), values.size("out_features"))}


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
    # Older: a boolean for each. Several stand beside each other in one order, whatever the file's is.
    known = [name for name in values.values if name.startswith("pooling_mode_")]
    modes = [name.removeprefix("pooling_mode_") for name in known if values.flag(name)]
    return sorted(modes, key=lambda mode: [*_ORDER, mode].index(mode))


def _read_mode(file: Path) -> str | tuple[str, ...]:
    values = Fields(file, "pooling", read_object(file))
    modes = _modes(values)
    if not modes or any(mode not in _MODES for mode in modes):
        asked = shown(" + ".join(modes) or "nothing")[1:-1]
        raise CheckpointError(f"{file}: pooling by {asked} is not supported; known: {', '.join(POOLINGS)}")
    if not values.flag("include_prompt", True):
        raise CheckpointError(f"{file}: include_prompt leaves prompts out of what is pooled, which is not supported")
    return _MODES[modes[0]] if len(modes) == 1 else tuple(_MODES[mode] for mode in modes)
