"""genai_config.json, by which onnxruntime-genai's own loader runs a decoder's bundle as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.bundle import GENAI_CONFIG, graph_of_genai, write_json
from tfm.model import TransformerConfig

from .generic.graph import GenericConfig
from .graphs import DecoderGraph, Graph
from .manifest import generation_settings

_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "olmo")
"""Families that onnxruntime-genai calls by the same name; any other decoder is run like a llama, by names alone."""


def write_genai_config(
    folder: Path,
    config: TransformerConfig | GenericConfig,
    family: str,
    graphs: Sequence[Graph],
    files: Mapping[str, Mapping[str, Path]],
) -> bool:
    """Write it where the bundle is of a decoder whose past and present may be one piece of memory.

    Args:
        folder: The bundle.
        config: The model's configuration.
        family: Where its weights came from.
        graphs: The graphs in it.
        files: Precision → role → ONNX file.

    Returns:
        Whether there is one now.
    """
    graph = graphs[0]
    if not isinstance(config, TransformerConfig) or not isinstance(graph, DecoderGraph):
        return False
    if graph.cross or not graph.has_room or config.reads_vectors:
        return False
    paths = {
        name: {role: file.relative_to(folder).as_posix() for role, file in roles.items()}
        for name, roles in files.items()
    }
    content = _content(folder, config, family, graph, graph_of_genai(paths))
    if content is not None:
        write_json(folder / GENAI_CONFIG, content)
    return content is not None


def _content(
    folder: Path, config: TransformerConfig, family: str, graph: DecoderGraph, file: str
) -> dict[str, Any] | None:
    settings = generation_settings(folder, config)
    heads = {config.kv_heads_of(heads) for heads in config.layer_heads("decoder")}
    # Its loader wants an end token and one to pad with, and makes caches of one shape.
    if settings is None or settings["eos_token_id"] is None or len(heads) != 1:
        return None
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    names |= {"position_ids": "position_ids"} if graph.positions else {}
    cache = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    present = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    ends = settings["eos_token_id"]
    return {
        "model": {
            "type": family if family in _TYPES else "llama",
            "bos_token_id": settings["bos_token_id"] or 0,
            "eos_token_id": ends,
            "pad_token_id": settings["pad_token_id"],
            "context_length": config.max_positions,
            "vocab_size": config.vocab_size,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": file,
                "head_size": config.head_size,
                "hidden_size": config.d_model,
                "num_attention_heads": config.nhead,
                "num_hidden_layers": config.num_decoder_layers,
                "num_key_value_heads": heads.pop(),
                "inputs": {**names, **cache},
                "outputs": {"logits": "logits", **present},
            },
        },
        "search": {"max_length": config.max_positions, "past_present_share_buffer": True, "do_sample": False},
    }
