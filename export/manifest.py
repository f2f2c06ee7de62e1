"""The bundle's manifest.json: what is in it, how to run it, and the digest of every file."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm import bundle
from tfm.bundle import read_json
from tfm.errors import ConfigError
from tfm.model import Fields, TransformerConfig, shown
from tfm.quantize import lowest_of_graphs

from .generation_defaults import generation_defaults
from .generic.cached import CachedConfig
from .generic.graph import GenericConfig
from .graphs import Graph
from .text_settings import max_text_tokens, text_settings

PACKAGES = ("tfm-export", "torch", "onnx", "onnxruntime")
"""Packages whose versions a bundle names."""

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "chat_template.jinja",
)
"""Files beside a checkpoint that go into the bundle as they are."""

Generates = TransformerConfig | CachedConfig
"""Configurations of what may have a decoder."""

_MAX_NEW_TOKENS = 128
"""How many tokens are generated where no generation_config.json says otherwise."""


def write_manifest(
    folder: Path,
    config: TransformerConfig | GenericConfig,
    family: str,
    graphs: Sequence[Graph],
    files: dict[str, dict[str, Path]],
    opset: int,
    gates: list[dict[str, Any]],
    merged: tuple[Graph, Mapping[str, Path]] | None = None,
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
        merged: The decoder in the form of other readers, and its file by precision; None: there is none.
    """
    paths = {
        name: {role: file.relative_to(folder).as_posix() for role, file in roles.items()}
        for name, roles in files.items()
    }
    content = {
        "kind": config.kind,
        "family": family,
        "config": config.to_dict(),
        "graphs": paths,
        "signature": {graph.role: graph.signature() for graph in graphs},
        # Read from the bundle's folder, not from the checkpoint's: what is copied there is what
        # holds.
        "generation": generation_settings(folder, config) if isinstance(config, Generates) else None,
        "max_text_tokens": max_text_tokens(folder),
        "text": text_settings(folder),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "opset": opset,
        "requires": lowest_of_graphs(folder, paths),
        "gates": gates,
    }
    if merged is not None:
        graph, of = merged
        names = {name: file.relative_to(folder).as_posix() for name, file in of.items() if name in files}
        content["merged"] = {"graphs": names, "signature": graph.signature()}
    bundle.write_manifest(folder, content)


def generation_settings(folder: Path, config: Generates) -> dict[str, Any] | None:
    """Read how to generate from generation_config.json, else from the configuration.

    None where there is no decoder, or no ids start and end what an encoder-decoder writes.

    Raises:
        ConfigError: The file is not JSON, or what it says is of another type or out of range.
    """
    if not config.has_decoder:
        return None
    path = folder / "generation_config.json"
    written = Fields(path, "generation", read_json(path) if path.is_file() else {})
    settings: dict[str, Any] = {
        "pad_token_id": _token(written, "pad_token_id", config, config.pad_token_id),
        "bos_token_id": _start(written, config),
        "eos_token_id": _ends(written, config),
    }
    # A decoder goes on from its prompt and may run until its limit; a target has to begin and to
    # end.
    if config.has_encoder and (settings["bos_token_id"] is None or settings["eos_token_id"] is None):
        return None
    if settings["pad_token_id"] is None:
        # As Hugging Face does it: padding stands behind the end, and is read by nobody.
        ends = settings["eos_token_id"]
        settings["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    said = generation_defaults(folder, config.target_vocab_size)
    # A limit that somebody wrote is kept even beyond the positions: the runtime stops there.
    settings["max_new_tokens"] = said.max_new_tokens or min(_MAX_NEW_TOKENS, config.max_positions)
    settings["max_length"] = said.max_length
    scaling = config.rotary_scaling if isinstance(config, TransformerConfig) else None
    if scaling is not None and scaling.kind == "longrope":
        settings["short_length"] = scaling.original_max_positions
    settings["split_on_whitespace"] = written.flag("split_on_whitespace")
    settings["defaults"] = dict(said.settings)
    settings["not_carried"] = list(said.not_carried)
    return settings


def _token(written: Fields, name: str, config: Generates, default: int | None) -> int | None:
    """Read a token's id."""
    token = written.token(name, default)
    _check_token(written, name, token, config)
    return token


def _start(written: Fields, config: Generates) -> int | None:
    """Read with which token a sequence starts; for an encoder-decoder this is not Hugging Face's bos_token_id."""
    if not config.has_encoder:
        return _token(written, "bos_token_id", config, config.bos_token_id)
    # Hugging Face starts targets with decoder_start_token_id; its bos_token_id may be another
    # token.
    start = config.bos_token_id
    if start is None and not written.has("decoder_start_token_id"):
        return _token(written, "bos_token_id", config, None)
    return _token(written, "decoder_start_token_id", config, start)


def _ends(written: Fields, config: Generates) -> int | list[int] | None:
    """Read which tokens end a sequence: one, or a list of several."""
    name = "eos_token_id"
    if not written.has(name):
        return config.eos_token_id
    ends = written.tokens(name)
    for token in ends:
        _check_token(written, name, token, config)
    # Written as it was found, one id or a list.
    return ends if isinstance(written.any(name), list) else ends[0]


def _check_token(written: Fields, name: str, token: int | None, config: Generates) -> None:
    if token is not None and not 0 <= token < config.target_vocab_size:
        raise ConfigError(f"{written.source}: {name} must be in [0, {config.target_vocab_size}), but is {shown(token)}")
