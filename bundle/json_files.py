"""JSON files and digests: what a bundle's manifest is written with, and written anew after it was quantized."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from tfm.errors import ConfigError

from .files import read_file
from .messages import brief
from .whole_file import write_whole

_MOST_BYTES = 32 << 20
"""Of a configuration: one of a million labels has less."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ConfigError: It holds none.
    """
    try:
        content = json.loads(read_file(path, _MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    # Python's reader calls itself for each value within another.
    except RecursionError as error:
        raise ConfigError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not an object of names and values")
    return content


def parse_once(content: bytes) -> Any:
    """Read JSON that says each thing once: of two values under one name, one reader takes the first, another the last.

    Raises:
        ValueError: It is no JSON, not UTF-8, or an object names a key twice.
        RecursionError: It is nested too deeply.
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"it names {brief(twice)} twice")
    return made


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, with a final newline: all of it, or nothing."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def finite(content: Any) -> Any:
    """Put None in the place of every number in JSON values that is infinite or NaN: JSON has neither."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def describe_file(file: Path) -> dict[str, Any]:
    """Give a file's size in bytes and its SHA-256."""
    with open(file, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}
