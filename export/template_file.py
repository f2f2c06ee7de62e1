"""The template that a chat model's messages are written by: one file in the bundle, wherever the checkpoint has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfm.bundle import TEMPLATE, write_json
from tfm.errors import CheckpointError
from tfm.model import load_chat_template, read_json


def put_chat_template(folders: Sequence[Path], inside: Path | None, bundle: Path) -> None:
    """Write a bundle's chat_template.jinja, where its checkpoint has a template; the file that was copied stays.

    Args:
        folders: Where the checkpoint's files stand, an adapter's before its base's.
        inside: The checkpoint, whose own file may have the template, as GGUF's does; None: it has none.
        bundle: The bundle's folder.

    Raises:
        CheckpointError: A file is malformed.
    """
    if (bundle / TEMPLATE).is_file():
        return
    # Before transformers 4.52 it stood in tokenizer_config.json.
    for folder in folders:
        path = folder / "tokenizer_config.json"
        if path.is_file() and (told := _template_of(read_json(path), path)) is not None:
            (bundle / TEMPLATE).write_text(told, encoding="utf-8", newline="")
            return
    found = None if inside is None else load_chat_template(inside)
    if found is not None:
        (bundle / TEMPLATE).write_text(found.template, encoding="utf-8", newline="")
        if not (bundle / "tokenizer_config.json").exists():
            write_json(bundle / "tokenizer_config.json", dict(found.special_tokens))


def _template_of(config: Any, path: Path) -> str | None:
    told = config.get("chat_template") if isinstance(config, dict) else None
    # Several by name, as models that call tools had them.
    if isinstance(told, list):
        named = {item.get("name"): item.get("template") for item in told if isinstance(item, dict)}
        told = named.get("default")
    if told is not None and not isinstance(told, str):
        raise CheckpointError(f"{path}: chat_template must be a text, or a list of named ones")
    return told
