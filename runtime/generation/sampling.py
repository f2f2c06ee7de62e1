"""Drawing the next token: by inverse CDF, from one uniform number per row and step.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Iterable

import numpy as np

from tfm.errors import InputError

from ..inputs.checks import Array


def softmax(logits_BV: Array) -> Array:
    """Turn logits, −inf where a token is forbidden, into probabilities, float32."""
    # Less the greatest, so that no power overflows; all that follows is in place.
    weights_BV = logits_BV - _greatest(logits_BV)  # the one copy
    np.exp(weights_BV, out=weights_BV)
    weights_BV /= weights_BV.sum(1, keepdims=True)
    return weights_BV


def log_softmax(logits_BV: Array) -> Array:
    """Turn logits into logarithms of probabilities, float32, −inf for a forbidden token."""
    shifted_BV = logits_BV - _greatest(logits_BV)
    shifted_BV -= np.log(np.exp(shifted_BV).sum(1, keepdims=True))
    return shifted_BV


class Sampler:
    """Draws tokens; each row has a generator of its own, so that its draws depend on no other row."""

    def __init__(self, seed: int | None, rows: Iterable[int]) -> None:
        """Prepare one generator per row.

        Args:
            seed: Equal seeds give equal draws; None: a fresh one.
            rows: The place of each row among all that the app asked for, wherever it stands in a batch.
        """
        # Where no seed was given, numpy draws this one, of which all rows' generators are made.
        entropy = np.random.SeedSequence(seed).entropy
        self._generators = [np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(row,))) for row in rows]

    def select(self, rows: Array) -> None:
        """Go on with some of the rows: indices."""
        self._generators = [self._generators[row] for row in rows]

    def draw(self, probabilities_BV: Array) -> Array:
        """Draw a token for each row, int64 (B,), which takes one uniform number from the generator of every row."""
        uniform_B = np.array([generator.random() for generator in self._generators])
        return draw_at(probabilities_BV, uniform_B)


def draw_at(probabilities_BV: Array, uniform_B: Array) -> Array:
    """Find where the cumulative distribution first exceeds a number in [0, 1), int64 (B,); not at a probability of 0.

    The probabilities need not sum to 1.
    """
    found = [_draw(row_V, float(uniform)) for row_V, uniform in zip(probabilities_BV, uniform_B, strict=True)]
    return np.array(found, np.int64)


def _draw(probabilities_V: Array, uniform: float) -> int:
    # After top-k or top-p few tokens are left, and to add up zeros is most of the work: each sum waits for the last.
    few = 4 * np.count_nonzero(probabilities_V) < len(probabilities_V)
    ids = np.flatnonzero(probabilities_V) if few else None
    # In float64: in float32 the sum over a large vocabulary is off by far more than one token's share.
    sums = np.cumsum(probabilities_V if ids is None else probabilities_V[ids], dtype=np.float64)
    place = np.searchsorted(sums, uniform * sums[-1], "right")  # less than the sum itself for every number below 1
    return int(place if ids is None else ids[place])


def _greatest(logits_BV: Array) -> Array:
    greatest_B1: Array = logits_BV.max(1, keepdims=True)
    if not np.isfinite(greatest_B1).all():
        row = int(np.argmin(np.isfinite(greatest_B1[:, 0])))
        raise InputError(
            f"the logits of row {row} have {greatest_B1[row, 0]} as their greatest: no token can be chosen; "
            "forbid fewer tokens, or check the model's outputs for NaN"
        )
    return greatest_B1
