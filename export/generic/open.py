"""Which checkpoints go the generic way, and how each becomes its graph."""

import os
from pathlib import Path

from tfm.errors import CheckpointError, ExportError
from tfm.model import FAMILIES, POOLED, entry_names, find_adapter, read_json

from .factory import from_factory
from .graph import GenericGraph
from .huggingface import from_huggingface
from .program import from_program


def is_generic(checkpoint: str | os.PathLike[str] | None, model: str | None = None) -> bool:
    """Whether there is a factory, or the checkpoint is an exported program or of a family that is not native."""
    if model is not None or checkpoint is None:
        return True
    # A file is told by its content, a folder by its configuration.
    checkpoint = Path(checkpoint)
    if checkpoint.is_file():
        return _is_program(checkpoint)
    try:
        values = read_json(base_of(checkpoint) / "config.json")
    except CheckpointError:
        return False  # the native reader says what is wrong
    # A configuration without a family is our own, or nothing; both are the native reader's.
    family = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(family, str):
        return False
    return family not in FAMILIES or _is_pooled(base_of(checkpoint), family)


def describe_generic(checkpoint: str | os.PathLike[str] | None, model: str | None = None) -> str:
    """Say, as the name of a stage, which way is taken."""
    if model is not None or checkpoint is None:
        return f"make {model}"
    path = Path(checkpoint)
    if path.is_file():
        return "read exported program"
    family = read_json(base_of(path) / "config.json")["model_type"]
    if family in FAMILIES:
        return f"read checkpoint by transformers (pooled as sentence-transformers does, {family} is not native)"
    return f"read checkpoint by transformers ({family[:80]} is not a native family)"


def base_of(checkpoint: Path) -> Path:
    """The folder that a checkpoint's configuration is in: of an adapter, its base's."""
    adapter = find_adapter(checkpoint)
    return checkpoint if adapter is None else adapter.base


def open_generic(checkpoint: str | os.PathLike[str] | None, model: str | None = None) -> GenericGraph:
    """Make the graph of a checkpoint that `is_generic`.

    Raises:
        TfmError: It cannot be read, or is not what it should be.
    """
    path = None if checkpoint is None else Path(checkpoint)
    if model is not None:
        return from_factory(model, path)
    if path is None:
        raise ExportError("there is nothing to export: name a checkpoint with --ckpt, or a factory with --model")
    return from_program(path) if path.is_file() else from_huggingface(path)


def _is_pooled(folder: Path, family: str) -> bool:
    """Whether sentence-transformers pools the states of a native family that gives logits here, or an image's."""
    return family not in POOLED and (folder / "modules.json").is_file()


def _is_program(file: Path) -> bool:
    # The second is what torch wrote before 2.9: it is taken as a program, so that from_program can
    # say what to do with it.
    return any(
        name.endswith("archive_format") or name == "serialized_exported_program.json" for name in entry_names(file)
    )
