"""Checkpoints on disk: ours (.pt, or safetensors with config.json) and Hugging Face folders of a known family.

What a file is, is read from its content. Nothing is ever unpickled beyond tensors and plain containers.
"""

import io
import json
import os
import pickletools
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError

from .config import TransformerConfig
from .families import FAMILIES
from .transformer import Transformer

Weights = dict[str, Tensor]

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt")


def load_checkpoint(path: str | os.PathLike[str]) -> Transformer:
    """Read a checkpoint into a model.

    Args:
        path: A `.pt` file of `save_checkpoint`; a safetensors file or state_dict with a config.json beside it; or a
            folder that holds config.json and the weights: ours, or a Hugging Face folder of a family in
            `tfm.model.FAMILIES`, with sentence-transformers' pooling where modules.json asks for it.

    Returns:
        The model, in eval mode, its weights as they are on disk (mapped, not copied, where the form allows).

    Raises:
        CheckpointError: It is missing, unreadable, would run code, or its weights do not fit its configuration.
        ConfigError: Its configuration contradicts itself.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    folder, file = (path, _weights_file(path)) if path.is_dir() else (path.parent, path)
    content = _read(file)
    if "config" in content and "state_dict" in content:
        values, weights = content["config"], content["state_dict"]
    else:
        values, weights = _read_config(folder, file), content.get("state_dict", content)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{file}: its config is a {type(values).__name__}, not a dict of the TransformerConfig fields"
        )
    weights = _check_weights(file, weights)
    try:
        if "model_type" in values:
            config, weights = _convert(folder, values, weights)
        else:
            config = TransformerConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return _fill(file, config, weights)


def save_checkpoint(model: Transformer, path: str | os.PathLike[str]) -> None:
    """Write a model: `.safetensors` beside a config.json, any other name as `{"config", "state_dict"}` by torch.save.

    Tied weights are stored once. An earlier file stays whole until the new one is complete.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = Path(path)
    weights: Weights = {}
    stored = set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if id(parameter) not in stored:
            stored.add(id(parameter))
            weights[name] = parameter.detach().contiguous()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            file = Path(folder) / path.name
            if path.suffix == ".safetensors":
                text = json.dumps(model.config.to_dict(), indent=2) + "\n"
                file.with_name("config.json").write_text(text, encoding="utf-8")
                safetensors.torch.save_file(weights, file)
                os.replace(file.with_name("config.json"), path.with_name("config.json"))
            else:
                torch.save({"config": model.config.to_dict(), "state_dict": weights}, file)
            os.replace(file, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"the folder {folder} holds none of {', '.join(_WEIGHT_FILES)}")


def _read(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(f"{file} is empty")
    with open(file, "rb") as stream:
        head = stream.read(9)
    if head[:4] == b"PK\x03\x04":
        content = _read_zip(file)
    elif len(head) == 9 and head[8:] == b"{":
        try:
            content = safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} looks like safetensors but cannot be read: {error}; was it cut short?"
            ) from error
    elif head[:1] == b"\x80":
        content = _torch_load(file, file.read_bytes(), mmap=False)
    else:
        raise CheckpointError(
            f"{file} is not a checkpoint: neither a torch.save file nor safetensors (it begins with {head[:8]!r})"
        )
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, not a dict; save it with tfm.model.save_checkpoint(model, path)"
        )
    return content


def _read_zip(file: Path) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            pickled = [archive.read(name) for name in names if name.endswith("/data.pkl")]
    except Exception as error:  # zipfile has no one error for damaged bytes
        raise CheckpointError(f"{file} is a damaged torch.save file: {error}; was it cut short?") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{file} is TorchScript, which holds code; save its state_dict() and configuration instead"
        )
    if not pickled:
        raise CheckpointError(f"{file} is a zip archive, but not one written by torch.save")
    return _torch_load(file, pickled[0], mmap=True)


def _torch_load(file: Path, pickled: bytes, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        classes = _foreign_globals(pickled)
        if not classes:
            reason = str(error).splitlines()[0] if str(error) else "its pickle is damaged"
            raise CheckpointError(f"{file} is not a checkpoint of torch.save: {reason}") from error
        if any(name.startswith("torch.nn.modules.") for name in classes):
            raise CheckpointError(
                f"{file} is a pickled whole module ({classes[0]}), which would run code on loading; nothing was run. "
                "Where its class is at hand, torch.load(path, weights_only=False) it there and "
                "torch.save({'config': ..., 'state_dict': module.state_dict()}, path)"
            ) from error
        raise CheckpointError(
            f"{file} refers to {classes[0]}, which could run code on loading; nothing was run. A checkpoint needs only "
            "tensors and plain containers"
        ) from error
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        reason = f"{type(error).__name__} {error}".splitlines()[0].strip()
        raise CheckpointError(f"{file} cannot be read by torch.load ({reason}); was it cut short?") from error


def _foreign_globals(pickled: bytes) -> list[str]:
    """Names that a pickle imports and a checkpoint of weights has no use for, read without running it."""
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in _opcodes(pickled):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        pass  # cut short; what was read so far still tells
    allowed = ("torch._utils.", "collections.OrderedDict", "torch.storage.", "torch.serialization.")
    storages = tuple(
        f"torch.{kind}" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte", "Char")
    )
    return [name for name in names if not name.startswith(allowed + storages)]


def _opcodes(pickled: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    stream = io.BytesIO(pickled)
    while stream.tell() < len(pickled):  # before 1.6 torch.save wrote several pickles in a row, then the raw weights
        yield from pickletools.genops(stream)


def _read_config(folder: Path, file: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{file} holds weights but no configuration: put its config.json beside it, or save it with "
            "tfm.model.save_checkpoint(model, path)"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _check_weights(file: Path, weights: Any) -> Weights:
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{file}: its state_dict holds no weights")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: its state_dict entry {name!r} is a {type(value).__name__}, not a tensor")
    return weights


def _convert(folder: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    family = values["model_type"]
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {family!r} is not supported; known: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[family](folder, values, weights)


def _fill(file: Path, config: TransformerConfig, weights: Weights) -> Transformer:
    with torch.device("meta"):
        skeleton = Transformer(config)
    expected = skeleton.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}  # tied names share one parameter
    for name, parameter in expected.items():
        groups.setdefault(id(parameter), []).append(name)
    missing = [names[0] for names in groups.values() if not any(name in weights for name in names)]
    extra = [name for name in weights if name not in expected]
    shapes = {n: (tuple(w.shape), tuple(expected[n].shape)) for n, w in weights.items() if n in expected}
    misshapen = [f"{name} is {got}, not {want}" for name, (got, want) in shapes.items() if got != want]
    packed = [f"{n} is {w.dtype}" for n, w in weights.items() if n in expected and not _is_plain(w)]
    faults = [
        _first_three("missing", missing),
        _first_three("not in the model", extra),
        _first_three("of another shape", misshapen),
        _first_three("not plain floating point", packed),
    ]
    if any(faults):
        raise CheckpointError(
            f"{file}: the weights do not fit the configuration: {'; '.join(fault for fault in faults if fault)}"
        )
    for names in groups.values():
        present = [name for name in names if name in weights]
        if any(not torch.equal(weights[present[0]].float(), weights[other].float()) for other in present[1:]):
            raise CheckpointError(f"{file}: the configuration ties {' and '.join(present)}, but the weights differ")
        parameter = nn.Parameter(weights[present[0]])
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(skeleton.get_submodule(owner), leaf, parameter)
    return skeleton.eval()


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.layout == torch.strided and not weight.is_meta


def _first_three(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}" if names else ""
