"""A model's id on the Hugging Face hub, such as `org/name`: its JSON files and safetensors are fetched, no other."""

import os
import re
from pathlib import Path

from tfm.errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp")

_FILE = re.compile(r".*\.(pt|pt2|pth|bin|ckpt|gguf|json|safetensors|tfm)")


_STEP = re.compile(r"checkpoint-(\d{1,12})")
"""How transformers' Trainer names the folder of each checkpoint that it saves, after its step."""


def newest_checkpoint(folder: Path) -> Path:
    """Give the last checkpoint of a folder that Trainer wrote and that holds no model itself; else the folder."""
    if not folder.is_dir() or any(path.is_file() and path.suffix in _WEIGHTS for path in folder.iterdir()):
        return folder
    steps = {int(match[1]): path for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))}
    # What was interrupted while it was saved has no configuration yet.
    whole = {step: path for step, path in steps.items() if (path / "config.json").is_file()}
    return whole[max(whole)] if whole else folder


def locate_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Give the path of a checkpoint, of several of one training the last; an id of the hub is fetched from there.

    Raises:
        CheckpointError: There is no such path, and no such model can be fetched.
    """
    name = Path(path).as_posix()
    if os.path.exists(path):  # of any name: one that is too long is not there
        return newest_checkpoint(Path(path))
    # What lies in a folder that is here is a path that is mistyped, not an id.
    if not _ID.fullmatch(name) or _FILE.fullmatch(name) or os.path.exists(Path(path).parent):
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"there is no checkpoint at {name}; if it is a model on the Hugging Face hub, pip install huggingface_hub "
            "to fetch it, or download it and give its folder"
        ) from error
    try:
        # JSON and safetensors hold no code. What is left out are the same weights in other formats.
        folder = huggingface_hub.snapshot_download(
            name,
            allow_patterns=["*.json", "*.safetensors"],
            ignore_patterns=["consolidated*", "onnx/*", "openvino/*", "original/*"],
        )
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no checkpoint at {name}, and no model of that name on the Hugging Face hub that you may read"
        ) from error
    except Exception as error:  # the hub, its cache and the network below share no narrower base
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(" .")[:200]
        raise CheckpointError(
            f"there is no checkpoint at {name}, and the Hugging Face hub could not be asked for it ({reason}); "
            "download it where there is a connection and give its folder"
        ) from error
    return Path(folder)
