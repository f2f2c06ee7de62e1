"""What says how images and sounds are prepared, and which letters a model hears, in the form that the runtime reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.bundle import PROCESSOR, VOCABULARY, read_file, write_json
from tfm.errors import CheckpointError
from tfm.model import read_json

_WHOLE = "processor_config.json"
_PARTS = ("feature_extractor", "image_processor")

_HEARD = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
"""Tokenizers that only write: a letter for each number of their vocab.json."""

_MOST_BYTES = 1 << 24
"""Of a vocabulary of letters, of a thousand languages too."""


def put_processor(sources: Sequence[Path], folder: Path) -> None:
    """Write preprocessor_config.json of the part of processor_config.json that transformers 5 has it in.

    Args:
        sources: The checkpoint's folders.
        folder: The bundle's, with the checkpoint's preprocessor_config.json in it, or without.

    Raises:
        CheckpointError: The file is not JSON.
    """
    if (folder / PROCESSOR).is_file():
        return
    for source in sources:
        values = _values(source / _WHOLE)
        found = next((values[part] for part in _PARTS if isinstance(values.get(part), dict)), None)
        if found is not None:
            write_json(folder / PROCESSOR, found)
            return


def hears_letters(source: Path) -> bool:
    """Whether a checkpoint's tokenizer writes the letters that a model hears, and reads nothing."""
    return _values(source / "tokenizer_config.json").get("tokenizer_class") in _HEARD


def put_letters(sources: Sequence[Path], folder: Path) -> bool:
    """Copy the vocab.json of a model that hears letters; tell whether there was one."""
    for source in sources:
        if (source / VOCABULARY).is_file() and hears_letters(source):
            try:
                content = read_file(source / VOCABULARY, _MOST_BYTES)
            except OSError as error:
                raise CheckpointError(f"{source / VOCABULARY} cannot be read: {error.strerror or error}") from error
            (folder / VOCABULARY).write_bytes(content)
            return True
    return False


def _values(path: Path) -> Mapping[str, Any]:
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a dict")
    return values
