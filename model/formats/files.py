"""A file of weights, told by its first bytes: safetensors, torch.save's zip archive or old pickle, an index of shards.

Weights are mapped from the file, not copied, but in the old pickle. Nothing is unpickled beyond tensors and plain
containers.
"""

import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from tfm.errors import CheckpointError

from ..fields import shown
from ..json_file import read_json
from .pickles import read_pickle, read_zip

_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "lit_model.pth",
    "consolidated.00.pth",
)
"""Where to look in a folder first; then at the content of every file in it."""

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""Weights that are of no use without those of a base."""

PLAN = ".metadata"
"""The file that says what a folder of torch.distributed.checkpoint holds."""

_LONGEST_HEADER = 100_000_000
"""Of safetensors, by its specification."""


def find_file(folder: Path) -> Path:
    """Find the weights in a folder."""
    # By name first: a folder may hold a model twice, as safetensors and as torch.save wrote it.
    names = (*_NAMES, PLAN) if is_dcp(folder) else _NAMES
    known = [folder / name for name in names if (folder / name).is_file()]
    found = known[:1] or sorted(filter(_holds_weights, folder.iterdir()))
    if len(found) > 1:
        raise CheckpointError(f"the folder {folder} holds {', '.join(path.name for path in found)}; name the one meant")
    if not found:
        raise CheckpointError(f"the folder {folder} holds none of {', '.join(_NAMES)}, nor another file of weights")
    return found[0]


def _holds_weights(path: Path) -> bool:
    return path.is_file() and path.name not in ADAPTERS and sniff(path) in ("zip", "safetensors", "gguf")


def is_dcp(folder: Path) -> bool:
    """Whether a folder is one of torch.distributed.checkpoint."""
    return (folder / PLAN).is_file() and any(folder.glob("*.distcp"))


def sniff(file: Path) -> str:
    """Tell what a file is by its first bytes: "zip", "safetensors", "gguf", "pickle", "json", "empty" or ""."""
    head = _begin(file, 9)
    if not head:
        return "empty"
    if head[:4] == b"PK\x03\x04":
        return "zip"
    # safetensors begins with the length of its JSON header, in 8 bytes.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    if head[:4] == b"GGUF":
        return "gguf"
    if head[:1] == b"\x80":
        return "pickle"
    return "json" if head[:1] == b"{" else ""


def _begin(file: Path, count: int) -> bytes:
    """Read the first bytes of a plain file."""
    if not file.is_file():
        raise CheckpointError(f"{file} is not a plain file, and so is not read as a checkpoint")
    try:
        with open(file, "rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error


def read_file(file: Path) -> dict[Any, Any]:
    """Read what a file of weights, or an index of several, holds."""
    if file.name == PLAN and is_dcp(file.parent):
        from .dcp import read_dcp  # its part of torch takes a while to import

        return read_dcp(file.parent)
    kind = sniff(file)
    if kind == "empty":
        raise CheckpointError(f"{file} is empty")
    if kind == "zip":
        content = read_zip(file)
    elif kind == "pickle":
        content = read_pickle(file)
    elif kind == "safetensors":
        content = _read_safetensors(file)
    else:
        content = _read_index(file) if kind == "json" else None
        if content is None:
            raise CheckpointError(
                f"{file} is not a checkpoint: neither a torch.save file nor safetensors (it begins with "
                f"{_begin(file, 8)!r})"
            )
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, not a dict; save it with tfm.model.save_checkpoint(model, path)"
        )
    return content


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError, MemoryError) as error:  # no memory: it cannot be mapped
        raise CheckpointError(
            f"{file} looks like safetensors but cannot be read: {error}; was it cut short?"
        ) from error


def _read_index(file: Path) -> dict[str, Any] | None:
    """Read all the shards that an index names; None where the file is no index."""
    shard_of = _weight_map(file)
    if shard_of is None:
        return None
    weights: dict[str, Any] = {}
    for shard in dict.fromkeys(shard_of.values()):
        content = _read_shard(file, shard)
        absent = [name for name, holder in shard_of.items() if holder == shard and name not in content]
        if absent:
            raise CheckpointError(
                f"{file} places the tensor {shown(absent[0])} in {shown(shard)}, which does not hold it"
            )
        weights |= content
    return weights


def _weight_map(file: Path) -> dict[str, str] | None:
    try:
        index = read_json(file)
    except CheckpointError:
        return None
    found = index.get("weight_map") if isinstance(index, dict) else None
    return found if isinstance(found, dict) and all(isinstance(name, str) for name in found.values()) else None


def _read_shard(file: Path, shard: str) -> dict[str, Any]:
    path = file.parent / shard
    # An index may come from anywhere, and is not to lead out of its folder.
    if Path(shard).name != shard:
        raise CheckpointError(f"{file} names the shard {shown(shard)}, which is not the name of a file beside it")
    if not os.path.isfile(path):  # a name may also be too long to be one
        raise CheckpointError(f"{file} names the shard {shown(shard)}, which is missing from {file.parent}")
    # An index of indices, or of itself, would never end.
    if sniff(path) == "json":
        raise CheckpointError(f"{file} names the shard {shown(shard)}, which is JSON and holds no weights")
    return read_file(path)
