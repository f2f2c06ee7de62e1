"""A folder of torch.distributed.checkpoint, as FSDP and torchtitan save them: a plan in `.metadata`, and shards.

The plan is a pickle. torch's own reader would unpickle anything in it; here it may name the classes that a plan is made
of, which only hold values, and nothing else. Each shard's part is read as a tensor alone.

Format: `torch.distributed.checkpoint.metadata` and `filesystem` of PyTorch 2.2 to 2.13.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm.errors import CheckpointError

from ..fields import shown
from .files import PLAN


class _Record:
    """Stands for an object of a plan: keeps what was said of it, and does nothing."""

    def __init__(self, *_: Any) -> None:
        """Take whatever a plan would make it of."""


class _Tensor(_Record):
    """A tensor: its properties, size, and the parts that it is cut into."""


class _Properties(_Record):
    """Of a tensor, whose dtype comes first."""

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0] if isinstance(state, tuple) else state.get("dtype")


class _Index(_Record):
    """What a part is found by: the tensor's name, and where it begins."""

    fqn: Any = None
    offset: Any = None

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and self.key == other.key

    @property
    def key(self) -> tuple[Any, Any]:
        """Name and offsets."""
        return self.fqn, None if self.offset is None else tuple(self.offset)


_MODULE = "torch.distributed.checkpoint."
_CLASSES: dict[tuple[str, str], Any] = {
    (_MODULE + "metadata", "TensorStorageMetadata"): _Tensor,
    (_MODULE + "metadata", "TensorProperties"): _Properties,
    (_MODULE + "metadata", "MetadataIndex"): _Index,
    (_MODULE + "metadata", "Metadata"): _Record,
    (_MODULE + "metadata", "ChunkStorageMetadata"): _Record,
    (_MODULE + "metadata", "BytesStorageMetadata"): _Record,
    (_MODULE + "metadata", "StorageMeta"): _Record,
    (_MODULE + "metadata", "_MEM_FORMAT_ENCODING"): _Record,
    (_MODULE + "filesystem", "_StorageInfo"): _Record,
    # Where it was saved, which is of no use here, and may be a path of another system.
    **{(module, name): _Record for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")},
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): str,
    ("collections", "OrderedDict"): dict,
}
"""What a plan may name → what it becomes here."""

_LARGEST = 1 << 27
"""Bytes of a plan; that of a model of 70 billion parameters on 1,024 machines has a quarter of that."""


def read_dcp(folder: Path) -> dict[str, Any]:
    """Read all tensors but an optimizer's, each put together of its parts, nested as they were saved.

    Raises:
        CheckpointError: The plan is damaged, or names what could run code; a part is missing, or lies outside.
    """
    plan = _read_plan(folder / PLAN)
    tensors, places = getattr(plan, "state_dict_metadata", None), getattr(plan, "storage_data", None)
    if not isinstance(tensors, dict) or not isinstance(places, dict):
        raise CheckpointError(f"{folder / PLAN} says nothing of tensors and where they are")
    places = {index.key: place for index, place in places.items() if isinstance(index, _Index)}
    paths = getattr(plan, "planner_data", None)
    nested: dict[str, Any] = {}
    for name, about in tensors.items():
        if not isinstance(about, _Tensor):
            continue
        path = _path(paths, name)
        # What an optimizer keeps is twice the weights, and of no use here.
        if "optim" in path[0]:
            continue
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise CheckpointError(f"{folder / PLAN} has {shown(key)} as a tensor and as what holds tensors")
        inner[path[-1]] = _read_tensor(folder, name, about, places)
    return nested


def _path(paths: Any, name: str) -> list[str]:
    """Under which keys a tensor was saved, one within the other."""
    path = paths.get(name) if isinstance(paths, dict) else None
    return [str(key) for key in path] if isinstance(path, tuple) and path else [name]


class _ForeignError(Exception):
    """A plan names what is no part of one."""


class _Reader(pickle.Unpickler):
    """Knows the classes of a plan, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        if found := _CLASSES.get((module, name)):
            return found
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        raise _ForeignError(f"{module}.{name}")


def _read_plan(file: Path) -> Any:
    if file.stat().st_size > _LARGEST:
        raise CheckpointError(f"{file} is larger than {_LARGEST >> 20} MiB, which no plan of a checkpoint is")
    try:
        return _Reader(io.BytesIO(file.read_bytes())).load()
    except _ForeignError as error:
        raise CheckpointError(
            f"{file} refers to {shown(str(error))}, which no plan of torch.distributed.checkpoint does, and which "
            "could run code; nothing was run"
        ) from error
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise CheckpointError(f"{file} is a damaged plan of torch.distributed.checkpoint: {error!r:.200}") from error


def _read_tensor(folder: Path, name: str, about: Any, places: Mapping[Any, Any]) -> Tensor:
    size, kind, parts = _cut(folder / PLAN, name, about)
    found = [_read_part(folder, name, places.get((name, tuple(start)))) for start, _ in parts]
    forms = [(list(part.shape), part.dtype) for part in found]
    if forms != [(sizes, kind) for _, sizes in parts]:
        raise CheckpointError(f"{folder}: the parts of {shown(name)} are not of the sizes that the plan says")
    if len(found) == 1:
        return found[0]
    # What no part fills, since others overlap, is not a number, and refused as such.
    whole = torch.full(size, torch.nan if kind.is_floating_point else 0, dtype=kind)
    for part, (offsets, sizes) in zip(found, parts, strict=True):
        whole[_box(folder / PLAN, name, offsets, sizes, size)] = part
    return whole


def _box(plan: Path, name: str, offsets: list[int], sizes: list[int], size: list[int]) -> tuple[slice, ...]:
    """Where in a tensor a part goes."""
    box = tuple(slice(start, start + n) for start, n in zip(offsets, sizes, strict=True))
    if any(inner.start < 0 or inner.stop > most for inner, most in zip(box, size, strict=True)):
        raise CheckpointError(f"{plan}: a part of {shown(name)} lies outside it")
    return box


def _cut(plan: Path, name: str, about: Any) -> tuple[list[int], torch.dtype, list[tuple[list[int], list[int]]]]:
    """Read a tensor's size and dtype, and where each of its parts begins and how large it is."""
    try:
        size, kind = list(map(int, about.size)), about.properties.dtype
        parts = [(list(map(int, chunk.offsets)), list(map(int, chunk.sizes))) for chunk in about.chunks]
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{plan} does not say of {shown(name)} how it is cut") from error
    # Counted before memory is taken: parts that do not overlap fill a tensor if their sizes add up to its own.
    ranks = {len(part) for pair in parts for part in pair}
    if ranks != {len(size)} or sum(_count(sizes) for _, sizes in parts) != _count(size):
        raise CheckpointError(f"{plan}: the parts of {shown(name)} do not make up a tensor of {size}")
    if not isinstance(kind, torch.dtype):
        raise CheckpointError(f"{plan} does not say of {shown(name)} of which dtype it is")
    return size, kind, parts


def _read_part(folder: Path, name: str, place: Any) -> Tensor:
    shard = getattr(place, "relative_path", None)
    # A plan may come from anywhere, and is not to lead out of its folder.
    if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
        raise CheckpointError(f"{folder / PLAN} places {shown(name)} in {shown(shard)}, which is no file beside it")
    if getattr(place, "transform_descriptors", None):
        raise CheckpointError(f"{folder / shard} is compressed; load it where it was saved, and save it without")
    try:
        with open(folder / shard, "rb") as stream:
            stream.seek(int(place.offset))
            part = torch.load(io.BytesIO(stream.read(int(place.length))), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise CheckpointError(f"{folder / shard}: {shown(name)} cannot be read from it; was it cut short?") from error
    if not isinstance(part, Tensor):
        raise CheckpointError(f"{folder / shard}: {shown(name)} is a {type(part).__name__}, not a tensor")
    return part


def _count(sizes: list[int]) -> int:
    count = 1
    for size in sizes:
        count *= max(size, 0)
    return count
