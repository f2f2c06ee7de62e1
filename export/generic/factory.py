"""`--model package.module:factory`: any nn.Module that Python code makes."""

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tfm.errors import CheckpointError, ExportError

from .graph import GenericGraph
from .lengths import lengthen


def from_factory(name: str, checkpoint: Path | None = None) -> GenericGraph:
    """Call a factory, and load a state_dict into what it makes.

    Args:
        name: "package.module:factory"; the module is imported from the current folder or sys.path. The factory takes
            nothing and returns the nn.Module, its example inputs (a dict or tuple) and the dynamic axes.
        checkpoint: A state_dict of torch.save or safetensors; None: the weights that the factory made.

    Raises:
        ExportError: There is no such factory, it fails, or it returns something else.
        CheckpointError: The checkpoint cannot be read, would run code, or does not fit the module.
    """
    made = _call(name)
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module)):
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
        if isinstance(made, tuple) and len(made) == 3:
            got = f"a tuple whose first part is a {type(made[0]).__name__}"
        raise ExportError(f"{name} must return (nn.Module, example inputs, dynamic axes), but returned {got}")
    module, examples, dynamic_axes = made
    if checkpoint is not None:
        _load(module, checkpoint)
    try:
        graph = GenericGraph(module, examples, dynamic_axes)
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from error
    return lengthen(graph)


def _call(name: str) -> Any:
    place, _, attribute = name.partition(":")
    if not place or not attribute:
        raise ExportError(f"{name!r} names no factory; write package.module:factory")
    factory = _import(place, attribute)
    if not callable(factory):
        raise ExportError(f"{name} is a {type(factory).__name__}, not a function to call")
    try:
        return factory()
    except Exception as error:  # whatever user code raises
        raise ExportError(f"{name}() fails: {type(error).__name__} {error}") from error


def _import(place: str, attribute: str) -> Any:
    # First on the path while the module is imported, and never otherwise: a random.py in the folder
    # must not take the place of Python's own for anybody else.
    # Which the user's code may change.
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(place)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except AttributeError as error:
        raise ExportError(f"the module {place!r} has no attribute {attribute!r}") from error
    except ModuleNotFoundError as error:
        # The module itself may be missing, or one that it imports: each asks for another repair.
        missing = f"there is no module {error.name!r}"
        what = missing if error.name and place.startswith(error.name) else f"importing {place!r} fails: {missing}"
        raise ExportError(f"{what}, in the current folder or on sys.path") from error
    except Exception as error:  # whatever user code raises
        raise ExportError(f"importing {place!r} fails: {type(error).__name__} {error}") from error
    finally:
        # It may have taken it away, too.
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _load(module: nn.Module, checkpoint: Path) -> None:
    try:
        # By content, not by name: a safetensors file is eight bytes with the length of its header,
        # and then the header, an object of JSON.
        with open(checkpoint, "rb") as stream:
            is_safetensors = stream.read(9)[8:] == b"{"
        if is_safetensors:
            import safetensors.torch

            weights: Any = safetensors.torch.load_file(checkpoint)
        else:
            # weights_only: a pickle could run code.
            weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make either reader raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{checkpoint} cannot be read as a state_dict: {reason}") from error
    # Trainers save the state_dict beside their own state, under this name.
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CheckpointError(f"{checkpoint} does not fit the module: {reason}") from error
