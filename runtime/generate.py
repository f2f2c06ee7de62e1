"""Greedy generation: one token at a time, with what earlier tokens left in the cache.

Shapes: B batch, S new tokens, P past tokens, N heads, H head size, V vocabulary.
"""

from collections.abc import Collection, Mapping
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
    mask_BS: Array | None = None,
) -> list[list[int]]:
    """Take the likeliest next token until every row has ended.

    Args:
        decoder: Takes input_ids, the context and past_key_values.…; gives logits (B, S, V) and present.….
        prompt_BS: Checked ids that every row starts with, int64.
        context: Inputs that stay the same at every step, as numpy arrays or OrtValues.
        generation: Which tokens end a row.
        max_new_tokens: Where to stop at the latest; the model's greatest length may come first, row by row.
        mask_BS: Which ids of prompts padded on the left are real, int64 0 or 1, for a decoder that takes
            attention_mask and position_ids; None: it takes neither, and all ids are real.

    Returns:
        Per row the new ids, without the one that ended it.
    """
    batch, width = prompt_BS.shape
    length_B = np.full(batch, width) if mask_BS is None else mask_BS.sum(1)
    limit_B, most = np.full(batch, max_new_tokens), length_limit(decoder.signature)
    if most is not None:  # the last new token is not fed back: it needs no position
        limit_B = np.minimum(limit_B, most - length_B + 1)
    feeds = {"input_ids": prompt_BS, **context}
    if mask_BS is not None:
        feeds["attention_mask"] = mask_BS
        feeds["position_ids"] = (mask_BS.cumsum(1) - 1).clip(min=0)
    caches = empty_caches(decoder, feeds)
    feeds.update(caches)
    outputs = ["logits", *(name.replace("past_key_values.", "present.") for name in caches)]

    done_B = np.zeros(batch, bool)
    columns: list[Array] = []
    while True:
        logits, *presents = decoder.run_bound(feeds, outputs)
        next_B = logits.numpy()[:, -1].argmax(-1)
        columns.append(next_B)
        done_B |= np.isin(next_B, generation.eos_token_ids) | (len(columns) >= limit_B)
        if done_B.all():
            break
        feeds["input_ids"] = next_B[:, None]
        if mask_BS is not None:  # a row that has ended stays at its last position, whatever it says there
            place_B = length_B + np.minimum(len(columns), limit_B - 1) - 1
            feeds["attention_mask"] = np.concatenate([feeds["attention_mask"], np.ones((batch, 1), np.int64)], 1)
            feeds["position_ids"] = place_B[:, None]
        feeds.update(zip(caches, presents, strict=True))
    rows = np.stack(columns, 1).tolist()
    return [_until(row[:limit], generation.eos_token_ids) for row, limit in zip(rows, limit_B.tolist(), strict=True)]


def empty_caches(decoder: Session, feeds: Mapping[str, Any]) -> dict[str, Array]:
    """Make the caches that a decoder takes beside `feeds`, each (B, N, 0, H), for the batch of its input_ids."""
    sizes = {"batch": len(feeds["input_ids"]), "past_sequence": 0}
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in decoder.signature.inputs
        if spec.name not in feeds
    }


def _until(row: list[int], ends: Collection[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
