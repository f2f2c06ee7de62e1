"""The ids that start, end and fill sequences, as Hugging Face's decoders name them."""

from typing import Any

from ..fields import Fields


def read_tokens(values: Fields, **defaults: int) -> dict[str, Any]:
    """Read pad_token_id, bos_token_id and eos_token_id; None where one is outside of the vocabulary, or has no default.

    Of several ids that end a sequence this is the first; generation_config.json, which a bundle heeds, has them all.
    """
    size = values.vocabulary()
    tokens: dict[str, Any] = {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        # null is told too: it means that there is none, whatever the default.
        given = name in values.values or name not in defaults
        found = values.tokens(name) if given else [defaults[name]]
        tokens[name] = found[0] if found and 0 <= found[0] < size else None
    return tokens
