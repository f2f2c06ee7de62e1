"""What torch.save writes, read without running anything: tensors and plain containers, or a sentence on why not."""

import argparse
import io
import pickletools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tfm.errors import CheckpointError

from .archive import open_archive

_MOST_PICKLED = 1 << 26
"""Bytes of a pickle in which names are looked for that it must not refer to."""


def read_zip(file: Path) -> Any:
    """Read torch.save's zip archive, its weights mapped."""
    with open_archive(file, "torch.save file") as archive:
        names = archive.namelist()
        pickled = [archive.read(name) for name in names if name.endswith("/data.pkl")]
    # A TorchScript archive has a data.pkl as well, so this comes first.
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{file} is TorchScript, which holds code; save its state_dict() and configuration instead"
        )
    if not pickled:
        raise CheckpointError(f"{file} is a zip archive, but not one written by torch.save")
    return _torch_load(file, lambda: pickled[0], mmap=True)


def read_pickle(file: Path) -> Any:
    """Read what torch.save wrote before 1.6."""
    return _torch_load(file, lambda: _begin(file), mmap=False)


def _begin(file: Path) -> bytes:
    """Read what stands before the weights."""
    with open(file, "rb") as stream:
        return stream.read(_MOST_PICKLED)


def _torch_load(file: Path, pickled: Callable[[], bytes], *, mmap: bool) -> Any:
    try:
        # torch warns of every protocol but 2, some of whose instructions it may not know; where it
        # meets one it raises, too.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            # Lightning's hyper-parameters, which hold values and do nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        # torch has refused it; which name it refused for is looked up in the pickle, without
        # running it.
        classes = _foreign_globals(pickled())
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
                # It takes module and name off the stack: as a rule the two texts that were put
                # there last.
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        pass  # cut short; what was read so far still tells
    allowed = (
        "argparse.Namespace",
        "torch._utils.",
        "collections.OrderedDict",
        "torch.storage.",
        "torch.serialization.",
    )
    storages = tuple(
        f"torch.{kind}" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte", "Char")
    )
    return [name for name in names if not name.startswith(allowed + storages)]


def _opcodes(pickled: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    stream = io.BytesIO(pickled)
    while stream.tell() < len(pickled):  # before 1.6 torch.save wrote several pickles in a row, then the raw weights
        yield from pickletools.genops(stream)
