"""The ids that start, end and fill sequences, as Hugging Face's decoders name them."""

from collections.abc import Mapping
from typing import Any


def read_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read pad_token_id, bos_token_id and eos_token_id; None where one is absent or outside of the vocabulary.

    Of several ids that end a sequence this is the first; generation_config.json, which a bundle heeds, has them all.
    """
    tokens, size = {}, values.get("vocab_size")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = values.get(name)
        token = token[0] if isinstance(token, list) and token else token
        inside = type(token) is int and type(size) is int and 0 <= token < size
        tokens[name] = token if inside else None
    return tokens
