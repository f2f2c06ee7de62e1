"""JSON that belongs to a checkpoint: of bounded size and depth, UTF-8, and saying each thing once."""

from pathlib import Path
from typing import Any

from tfm.bundle import parse_once
from tfm.errors import CheckpointError

_MOST_BYTES = 32 << 20
"""Of a file: an index of thousands of shards, or the names of a million labels, has less."""


def read_json(path: Path) -> Any:
    """Read a JSON file that is part of a checkpoint.

    Raises:
        CheckpointError: It is missing, no plain file, too large, nested too deeply, not UTF-8, not JSON, or names a
            key twice.
    """
    try:
        # Within the try, as a name that another file gives may be longer than any file's can be.
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a plain file, and so is not read as JSON")
        with open(path, "rb") as stream:
            # One byte more shows that a file is too large, without reading the rest.
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise CheckpointError(f"{path} is larger than {_MOST_BYTES >> 20} MiB, which no part of a checkpoint is")
        return parse_once(content)
    except RecursionError as error:
        raise CheckpointError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is missing or not JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict")
    return content
