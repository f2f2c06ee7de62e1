"""Greedy generation: one token at a time, with what earlier tokens left in the cache.

Shapes: B batch, S new tokens, P past tokens, N heads, H head size, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .batches import length_limit
from .checks import Array
from .manifest import Generation
from .session import Session


def generate_greedily(
    decoder: Session,
    prompt_BS: Array,
    context: Mapping[str, Any],
    generation: Generation,
    max_new_tokens: int,
) -> list[list[int]]:
    """Take the likeliest next token until every row has ended.

    Args:
        decoder: Takes input_ids, the context and past_key_values.…; gives logits (B, S, V) and present.….
        prompt_BS: Checked ids that every row starts with, int64, without padding.
        context: Inputs that stay the same at every step, as numpy arrays or OrtValues.
        generation: Which token ends a row.
        max_new_tokens: Where to stop at the latest; the model's greatest length may come first.

    Returns:
        Per row the new ids, without the one that ended it.
    """
    batch, prompt_length = prompt_BS.shape
    most = length_limit(decoder.signature)
    if most is not None:  # the last new token is not fed back: it needs no position
        max_new_tokens = min(max_new_tokens, most - prompt_length + 1)
    feeds = {"input_ids": prompt_BS, **context}
    caches = empty_caches(decoder, feeds)
    feeds.update(caches)
    outputs = ["logits", *(name.replace("past_key_values.", "present.") for name in caches)]

    done_B = np.zeros(batch, bool)
    columns: list[Array] = []
    while True:
        logits, *presents = decoder.run_bound(feeds, outputs)
        next_B = logits.numpy()[:, -1].argmax(-1)
        columns.append(next_B)
        if generation.eos_token_id is not None:
            done_B |= next_B == generation.eos_token_id
        if done_B.all() or len(columns) == max_new_tokens:
            break
        feeds["input_ids"] = next_B[:, None]
        feeds.update(zip(caches, presents, strict=True))
    return [_until(row, generation.eos_token_id) for row in np.stack(columns, 1).tolist()]


def empty_caches(decoder: Session, feeds: Mapping[str, Any]) -> dict[str, Array]:
    """Make the caches that a decoder takes beside `feeds`, each (B, N, 0, H), for the batch of its input_ids."""
    sizes = {"batch": len(feeds["input_ids"]), "past_sequence": 0}
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in decoder.signature.inputs
        if spec.name not in feeds
    }


def _until(row: list[int], end: int | None) -> list[int]:
    return row[: row.index(end)] if end in row else row
