"""The bundle's manifest.json: what is in it, how to run it, and the digest of every file."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfm.errors import ConfigError
from tfm.model import TransformerConfig
from tfm.quantize.lowest_onnxruntime import lowest_of_graphs
from tfm.quantize.manifest import describe_file, read_json, write_json

from .generic import GenericConfig
from .graphs import Graph

SCHEMA = 1
"""Version of manifest.json."""

PACKAGES = ("tfm-export", "torch", "onnx", "onnxruntime")
"""Whose versions a bundle names."""

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
)
"""Files beside a checkpoint that go into the bundle as they are."""

_MAX_NEW_TOKENS = 128
"""Where no generation_config.json says otherwise."""


def write_manifest(
    folder: Path,
    config: TransformerConfig | GenericConfig,
    family: str,
    graphs: Sequence[Graph],
    files: dict[str, dict[str, Path]],
    opset: int,
    gates: list[dict[str, Any]],
) -> None:
    """Write manifest.json over the files that are in a bundle's folder, its companions included.

    Args:
        folder: The bundle.
        config: The model's configuration.
        family: Where its weights came from: "transformer" for our own checkpoints, a Hugging Face model_type, or how
            a module that is not native was read.
        graphs: The graphs in it.
        files: Precision → role → ONNX file.
        opset: ONNX opset of the graphs.
        gates: Name and verdict of every gate that was run.
    """
    paths = {
        name: {role: file.relative_to(folder).as_posix() for role, file in roles.items()}
        for name, roles in files.items()
    }
    content = {
        "schema": SCHEMA,
        "kind": config.kind,
        "family": family,
        "config": config.to_dict(),
        "graphs": paths,
        "signature": {graph.role: graph.signature() for graph in graphs},
        "generation": generation_settings(folder, config) if isinstance(config, TransformerConfig) else None,
        "max_text_tokens": _max_text_tokens(folder),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "opset": opset,
        "requires": lowest_of_graphs(folder, paths),
        "gates": gates,
        "files": {
            file.relative_to(folder).as_posix(): describe_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != "manifest.json"
        },
    }
    write_json(folder / "manifest.json", content)


def generation_settings(folder: Path, config: TransformerConfig) -> dict[str, Any] | None:
    """Read how to generate from generation_config.json, else from the configuration.

    None where there is no decoder, or no ids start and end what an encoder-decoder writes.

    Raises:
        ConfigError: The file is not JSON, or an id in it is out of range.
    """
    if not config.has_decoder:
        return None
    path = folder / "generation_config.json"
    written = read_json(path) if path.is_file() else {}
    values = {name: value for name, value in written.items() if value is not None}  # null: not set
    settings: dict[str, Any] = {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        settings[name] = values.get(name, getattr(config, name))
        if name == "bos_token_id" and config.has_encoder:
            # Hugging Face's bos_token_id is not what decoding starts with
            start = config.bos_token_id if config.bos_token_id is not None else values.get(name)
            settings[name] = values.get("decoder_start_token_id", start)
        ends = settings[name] if name == "eos_token_id" and isinstance(settings[name], list) else [settings[name]]
        for token in ends:  # several may end a sequence
            if token is not None and not (type(token) is int and 0 <= token < config.target_vocab_size):
                raise ConfigError(f"{path}: {name} must be in [0, {config.target_vocab_size}), but is {token!r}")
    if config.has_encoder and (settings["bos_token_id"] is None or settings["eos_token_id"] is None):
        return None
    if settings["pad_token_id"] is None:
        ends = settings["eos_token_id"]
        settings["pad_token_id"] = ends[0] if isinstance(ends, list) and ends else ends if type(ends) is int else None
    settings["max_new_tokens"] = most = values.get("max_new_tokens", min(_MAX_NEW_TOKENS, config.max_positions))
    if type(most) is not int or most < 1:
        raise ConfigError(f"{path}: max_new_tokens must be an integer of at least 1, but is {most!r}")
    settings["split_on_whitespace"] = bool(values.get("split_on_whitespace", False))
    return settings


def _max_text_tokens(folder: Path) -> int | None:
    """How many tokens of a text sentence-transformers reads, where it says so."""
    path = folder / "sentence_bert_config.json"
    value = read_json(path).get("max_seq_length") if path.is_file() else None
    return value if isinstance(value, int) else None
