"""A checkpoint opened by transformers itself, as its owner would."""

import importlib
from pathlib import Path
from typing import Any

import torch


def transformers() -> Any:
    """Import the package, whose own types say less than they cost."""
    return importlib.import_module("transformers")


def open_model(folder: Path, cls: str) -> Any:
    """Open a checkpoint by one of transformers' classes, in float32.

    Raises:
        ValueError: The checkpoint is of another class, whose weights this one lacks and would draw at random.
    """
    opened = getattr(transformers(), cls).from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    model, report = opened
    if report["missing_keys"]:
        raise ValueError(f"it has no weights for {type(model).__name__}, such as {min(report['missing_keys'])}")
    return model.eval()
