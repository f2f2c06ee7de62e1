"""Where a command writes to: checked before the long work, and an error in one sentence where it fails after it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tfm.errors import ExportError, InputError

_CHECKPOINTS = (".bin", ".ckpt", ".gguf", ".npz", ".pkl", ".pt", ".pt2", ".pth", ".safetensors", ".tar")
"""How the names of files with weights end."""
_INDEX = ".index.json"
_FALLBACK = "model"


def check_file(option: str, path: Path | None) -> None:
    """Refuse now where a file could not be written after all the work.

    Raises:
        InputError: Its folder is not there or takes no files, or it is a folder itself.
    """
    if path is None:
        return
    # Of what a link leads to, since that is where the file is written.
    folder = path.resolve().parent
    if not os.path.isdir(folder):
        raise InputError(f"{option}: there is no folder {folder}")
    if os.path.isdir(path):
        raise InputError(f"{option}: {path} is a folder; name a file")
    # A new file needs the right to write into its folder.
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise InputError(f"{option}: {path} cannot be written to: permission denied")


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """While a file is written: an error of the system is one of ours.

    Raises:
        ExportError: It could not be written.
    """
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error.strerror or error}") from error


def name_after(source: str | os.PathLike[str]) -> str:
    """Name what is made of a checkpoint after it.

    Args:
        source: A file, whose ending goes if it is one of weights; a folder or an id of the Hugging Face hub, whose last
            part stays whole: in "Qwen2.5-0.5B" no ending begins.
    """
    path = Path(os.path.abspath(source))  # not resolved: a link of the hub's cache leads to a digest
    name = path.name or _FALLBACK
    if not os.path.isfile(path):  # nor is one whose name is too long
        return name
    lowered = name.lower()
    # "model.safetensors.index.json" of a checkpoint in parts: what is before it ends by itself.
    if lowered.endswith(_INDEX):
        name = name[: -len(_INDEX)]
    # Any other ending may be part of the name, as in "model-v1.5".
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _CHECKPOINTS else name


def name_after_factory(factory: str) -> str:
    """Name what is made of "package.module:factory" after the factory, all of its path."""
    return factory.rpartition(":")[2] or _FALLBACK
