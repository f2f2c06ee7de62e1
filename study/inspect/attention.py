"""What every head of an attention looks at, in figures and in plain words.

Shapes: N heads, S queries, T keys.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import VerificationError

NAMED = 0.5
"""A head is named after a place that gets at least this share of its attention."""
EVEN = 0.95
"""A head whose entropy is at least this share of the greatest one is "spread evenly"."""
_CLOSED = -5e3
"""What is added to a score to close a key is below this (older models add -1e4); biases of position are far above."""
_SUM = 1e-2
"""How far from 1 a row of weights may add up to: float16 adds 512 of them to within 5e-3."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One head on one text. Queries that may attend to one key alone have no choice, and count nowhere here.

    Attributes:
        entropy: -Σ w ln w of a query's weights, in nats, mean over queries; 0.0 where no query has a choice.
        relative: Entropy by the greatest it could be, ln of the number of keys that the query may attend to, mean over
            queries; None where no query has a choice.
        strongest: For each query the key with the largest weight.
        label: What it attends to, in words: "spread evenly" where `relative` is at least `EVEN`; else the place that
            gets most of the weight, mean over queries, if that is at least `NAMED`; else "".
        share: The part of the weight that goes to the place of the label; None where that is no place.
    """

    entropy: float
    relative: float | None
    strongest: tuple[int, ...]
    label: str
    share: float | None


def describe_heads(
    weights_NST: npt.NDArray[np.floating],
    open_NST: npt.NDArray[np.bool_],
    ids: Sequence[int],
    *,
    cross: bool = False,
) -> tuple[Head, ...]:
    """Describe every head of one attention.

    Places that a head can be named after, of a query at s: "previous token" s-1, "itself" s, "next token" s+1, "first
    token" 0, "last token" T-1, and "same token elsewhere", all other keys with the query's id. Over another sequence:
    "same place" s, and the first and the last token.

    Args:
        weights_NST: What each query gives to each key, (N, S, T).
        open_NST: Which keys each query may attend to, boolean; broadcasts to (N, S, T).
        ids: Token ids of the queries, S; they tell which tokens are the same.
        cross: Whether the keys are those of another sequence.

    Raises:
        VerificationError: These are no weights: not finite, negative, or rows that do not add up to 1.
    """
    weights_NST = np.asarray(weights_NST, dtype=np.float64)
    # Shown as they are, wrong weights would look like a finding about the model.
    sound = np.isfinite(weights_NST).all() and (weights_NST >= 0).all()
    if not sound or not np.allclose(weights_NST.sum(axis=-1), 1.0, rtol=0, atol=_SUM):
        raise VerificationError(
            "attention weights are not finite, negative or do not add up to 1: the graph computes no softmax here"
        )
    open_NST = np.broadcast_to(open_NST, weights_NST.shape)
    positions = _positions(weights_NST.shape[1], weights_NST.shape[2], ids, cross)
    return tuple(_describe(w_ST, o_ST, positions) for w_ST, o_ST in zip(weights_NST, open_NST, strict=True))


def open_keys(mask: npt.NDArray[Any] | None, shape: tuple[int, int], *, causal: bool) -> npt.NDArray[np.bool_]:
    """Read off a mask which keys may be attended to.

    Args:
        mask: Boolean, or numbers added to the scores (or the scores themselves), broadcasts to (N, S, T); None: none.
        shape: (S, T).
        causal: Whether a query sees no later key.

    Returns:
        Boolean, broadcasts to (N, S, T).
    """
    # A mask of numbers is added to the scores, and closes a key by a very negative one.
    seen = np.ones((1, *shape), np.bool_) if mask is None else mask if mask.dtype == np.bool_ else mask > _CLOSED
    return seen & np.tri(*shape, dtype=np.bool_) if causal else seen


def _positions(queries: int, keys: int, ids: Sequence[int], cross: bool) -> dict[str, npt.NDArray[np.bool_]]:
    """Each place as the keys (S, T) that it is."""
    key_T, query_S1 = np.arange(keys), np.arange(queries)[:, None]
    ends = {
        "first token": np.broadcast_to(key_T == 0, (queries, keys)),
        "last token": np.broadcast_to(key_T == keys - 1, (queries, keys)),
    }
    if cross:
        return {"same place": key_T == query_S1, **ends}
    ids_S = np.asarray(ids)
    offsets = {"previous token": -1, "itself": 0, "next token": 1}
    # (T,) against (S, 1): where the key is so far from the query, (S, T).
    near = {name: key_T == query_S1 + offset for name, offset in offsets.items()}
    return {**near, **ends, "same token elsewhere": (ids_S[:, None] == ids_S) & (key_T != query_S1)}


def _describe(
    weights_ST: npt.NDArray[np.float64], open_ST: npt.NDArray[np.bool_], positions: dict[str, npt.NDArray[np.bool_]]
) -> Head:
    strongest = tuple(int(key) for key in weights_ST.argmax(axis=-1))
    count_S = open_ST.sum(axis=-1)
    chooses_S = count_S > 1
    if not chooses_S.any():
        return Head(entropy=0.0, relative=None, strongest=strongest, label="", share=None)
    chosen = weights_ST[chooses_S]
    # 0 · ln 0 counts as 0.
    entropy_S = -(chosen * np.log(np.where(chosen > 0, chosen, 1.0))).sum(axis=-1)
    # Each query by its own greatest: under a causal mask they have different numbers of keys.
    relative = float((entropy_S / np.log(count_S[chooses_S])).mean())
    shares = {name: float((chosen * position[chooses_S]).sum(axis=-1).mean()) for name, position in positions.items()}
    position, share = max(shares.items(), key=lambda item: item[1])
    # Evenness first: of two keys, each has half of the attention of an even head.
    label, named_share = (
        ("spread evenly", None) if relative >= EVEN else (position, share) if share >= NAMED else ("", None)
    )
    return Head(entropy=float(entropy_S.mean()), relative=relative, strongest=strongest, label=label, share=named_share)
