"""Which checkpoints go the generic way, and how each becomes its graph."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm.errors import CheckpointError, ExportError, NotNativeError, TfmError
from tfm.model import FAMILIES, POOLED, Transformer, entry_names, find_adapter, load_checkpoint, read_json
from tfm.quantize import Stage, silent

from .factory import from_factory
from .graph import GenericGraph
from .huggingface import from_huggingface
from .program import from_program

_SHOWN = 200
"""Characters of a reason in the name of a stage."""


def is_generic(checkpoint: str | os.PathLike[str] | None, model: str | None = None) -> bool:
    """Whether there is a factory, or the checkpoint is an exported program or of a family that is not native."""
    if model is not None or checkpoint is None:
        return True
    # A file is told by its content, a folder by its configuration.
    checkpoint = Path(checkpoint)
    if checkpoint.is_file():
        return _is_program(checkpoint)
    family = _family(checkpoint)
    return family is not None and (family not in FAMILIES or _is_pooled(base_of(checkpoint), family))


def read_model(
    checkpoint: str | os.PathLike[str] | None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    stage: Stage = silent,
    merges: str = "",
) -> Transformer | GenericGraph:
    """Read a native model, or the graph of any other.

    A folder of a native family whose head or configuration is not native is read by transformers, as a folder of any
    other family is; the stage says so, and why.

    Args:
        checkpoint: As `tfm.export.export_checkpoint` takes it; so is `model`.
        model: "package.module:factory" of any nn.Module.
        options: What else `tfm.model.load_checkpoint` is given.
        stage: Told of every stage.
        merges: What the stage's name says besides.

    Raises:
        TfmError: It cannot be read, in neither way.
    """
    if checkpoint is None or is_generic(checkpoint, model):
        with stage(describe_generic(checkpoint, model) + merges):
            return open_generic(checkpoint, model)
    options = options or {}
    with stage("read checkpoint" + merges):
        try:
            return load_checkpoint(checkpoint, **options)
        except NotNativeError as error:
            # A configuration of the user's own choice is for the native model alone.
            if any(options.values()) or _family(Path(checkpoint)) is None:
                raise
            refusal = error
    with stage(f"read checkpoint by transformers, since {str(refusal)[:_SHOWN]}"):
        return _by_transformers(Path(checkpoint), refusal)


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


def _by_transformers(folder: Path, refusal: NotNativeError) -> GenericGraph:
    try:
        return from_huggingface(folder)
    except TfmError as error:
        # The first reason is what the user may mend; the second is why the other way is none, either.
        raise type(error)(f"{refusal}; and transformers does not help: {error}") from error


def _family(checkpoint: Path) -> str | None:
    """Tell the model_type of a Hugging Face folder, or of the base of an adapter's; None of anything else."""
    if not checkpoint.is_dir():
        return None
    try:
        values = read_json(base_of(checkpoint) / "config.json")
    except CheckpointError:
        # The native reader says what is wrong.
        return None
    # A configuration without a family is our own, or nothing; both are the native reader's.
    family = values.get("model_type") if isinstance(values, dict) else None
    return family if isinstance(family, str) else None


def _is_program(file: Path) -> bool:
    # The second is what torch wrote before 2.9: it is taken as a program, so that from_program can
    # say what to do with it.
    return any(
        name.endswith("archive_format") or name == "serialized_exported_program.json" for name in entry_names(file)
    )
