"""What changes the logits before a token is chosen: penalties, bans, and the narrowing that sampling does.

A processor is a callable: it takes each row's tokens so far, those of its prompt first, and logits (B, V) that it may
overwrite, and returns logits (B, V). An app's own callables fit in the same place. The functions are those of the
classes in transformers.generation.logits_process 5, except that rows are not padded: no padding is ever counted as a
token of the text.

Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from tfm.errors import InputError

from ..inputs.checks import Array

Tokens = Sequence[Sequence[int] | Array]
LogitsProcessor = Callable[[Tokens, Array], Array]

_FORBIDDEN = np.float32(-np.inf)


def process_logits(processors: Sequence[LogitsProcessor], tokens: Tokens, logits_BV: Array) -> Array:
    """Apply processors in their order.

    Args:
        processors: As `processors` of the settings gives them; where there are none, nothing is copied or computed.
        tokens: Each row's tokens so far, B lists of int or int64 arrays.
        logits_BV: float32 (B, V), or float16 from a graph of that precision; left as it is.

    Returns:
        The logits, float32 (B, V), or `logits_BV` itself where there are no processors.

    Raises:
        InputError: An app's own processor returned something else than floats of the same shape.
    """
    if not processors:
        return logits_BV
    shape = logits_BV.shape
    logits_BV = logits_BV.astype(np.float32)  # the one private copy
    for processor in processors:
        logits_BV = processor(tokens, logits_BV)
        if not isinstance(logits_BV, np.ndarray) or logits_BV.shape != shape or logits_BV.dtype.kind != "f":
            what = getattr(logits_BV, "shape", None), getattr(logits_BV, "dtype", type(logits_BV).__name__)
            raise InputError(
                f"the logits processor {processor!r} returned shape {what[0]}, {what[1]}; "
                f"return the logits as a float array of shape {shape}"
            )
        logits_BV = logits_BV.astype(np.float32, copy=False)
    return logits_BV


class RepetitionPenalty:
    """Make every token that a row has already less likely (Keskar et al. 2019, arXiv:1909.05858)."""

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        for row, logits_V in zip(tokens, logits_BV, strict=True):
            ids = _known(row, logits_V)
            seen = logits_V[ids]
            logits_V[ids] = np.where(seen < 0, seen * self._penalty, seen / self._penalty)
        return logits_BV


class NoRepeatNGram:
    """Forbid what would complete n tokens that a row has already had in this order."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        for row, logits_V in zip(tokens, logits_BV, strict=True):
            ids = np.asarray(row, np.int64)
            if len(ids) >= self._size:
                # (W, n): every n tokens that the row has had one after the other, as views.
                windows = np.lib.stride_tricks.sliding_window_view(ids, self._size)
                completed = (windows[:, :-1] == ids[len(ids) + 1 - self._size :]).all(1)
                logits_V[_known(windows[completed, -1], logits_V)] = _FORBIDDEN
        return logits_BV


class NoBadWords:
    """Forbid the last token of a banned sequence where a row ends with the tokens before it.

    A sequence that is one end token alone is no bad word: it stays allowed.
    """

    def __init__(self, bad_words_ids: Sequence[Sequence[int]], end_ids: Collection[int]) -> None:
        self._always = [words[0] for words in bad_words_ids if len(words) == 1 and words[0] not in end_ids]
        self._after = [(list(words[:-1]), words[-1]) for words in bad_words_ids if len(words) > 1]

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        # Words of one token are forbidden wherever a row stands; longer ones by how it ends.
        logits_BV[:, self._always] = _FORBIDDEN
        for row, logits_V in zip(tokens, logits_BV, strict=True):
            for start, last in self._after:
                if len(row) >= len(start) and list(row[-len(start) :]) == start:
                    logits_V[last] = _FORBIDDEN
        return logits_BV


class MinLength:
    """Forbid end tokens until a row, its prompt included, has its least length, int64 (B,)."""

    def __init__(self, least_B: Array, end_ids: Collection[int]) -> None:
        self._least_B = least_B
        self._ends = np.array(sorted(end_ids), np.int64)

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        early = np.flatnonzero(_lengths(tokens) < self._least_B)
        logits_BV[np.ix_(early, self._ends)] = _FORBIDDEN
        return logits_BV


class ForcedTokens:
    """Allow nothing but the given tokens where a row, its prompt included, has exactly a length, int64 (B,)."""

    def __init__(self, length_B: Array, token_ids: Sequence[int]) -> None:
        self._length_B = length_B
        self._ids = np.array(token_ids, np.int64)

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        here = np.flatnonzero(_lengths(tokens) == self._length_B)
        logits_BV[here] = _FORBIDDEN
        # They are as likely as each other; all else is forbidden.
        logits_BV[np.ix_(here, self._ids)] = 0
        return logits_BV


class SuppressTokens:
    """Forbid tokens everywhere."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._ids = list(token_ids)

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        logits_BV[:, self._ids] = _FORBIDDEN
        return logits_BV


class SuppressAtLength:
    """Forbid tokens where a row, its prompt included, has exactly a length, int64 (B,)."""

    def __init__(self, length_B: Array, token_ids: Sequence[int]) -> None:
        self._length_B = length_B
        self._ids = np.array(token_ids, np.int64)

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        here = np.flatnonzero(_lengths(tokens) == self._length_B)
        logits_BV[np.ix_(here, self._ids)] = _FORBIDDEN
        return logits_BV


class Temperature:
    """Divide the logits: below 1 the likely becomes likelier."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        logits_BV /= self._temperature
        return logits_BV


class TopK:
    """Keep the k likeliest tokens, and those as likely as the last of them (Fan et al. 2018, arXiv:1805.04833)."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        if self._top_k < logits_BV.shape[1]:
            # (B, 1): the k-th greatest of each row; a whole sort would take longer.
            least_B1 = np.partition(logits_BV, -self._top_k, axis=1)[:, -self._top_k, None]
            logits_BV[logits_BV < least_B1] = _FORBIDDEN
        return logits_BV


class TopP:
    """Keep the likeliest tokens that together reach a probability (Holtzman et al. 2019, arXiv:1904.09751).

    Of equal logits at the border, those of the smaller ids are kept; transformers leaves that to its sort.
    """

    def __init__(self, top_p: float) -> None:
        self._rest = np.float32(1 - top_p)

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        for logits_V in logits_BV:
            ordered = np.sort(logits_V[logits_V > _FORBIDDEN])  # after top-k, few
            if ordered.size < 2:
                continue
            weights = np.exp(ordered - ordered[-1])
            # From the least likely on, as in transformers: what has at most 1 − top_p together goes. The
            # likeliest always stays.
            sums = np.cumsum(weights / weights.sum(), dtype=np.float64).astype(np.float32)
            removed = min(int(np.searchsorted(sums, self._rest, "right")), ordered.size - 1)
            border = ordered[removed]
            kept_of_equal = int(np.searchsorted(ordered, border, "right")) - removed
            logits_V[np.flatnonzero(logits_V == border)[kept_of_equal:]] = _FORBIDDEN
            logits_V[logits_V < border] = _FORBIDDEN
        return logits_BV


class MinP:
    """Keep the tokens that are at least `min_p` times as likely as the likeliest (Nguyen et al., arXiv:2407.01082)."""

    def __init__(self, min_p: float) -> None:
        # So many times as likely is so much apart in logits: no softmax is needed.
        self._log = math.log(min_p) if min_p > 0 else -math.inf

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        logits_BV[logits_BV < logits_BV.max(1, keepdims=True) + self._log] = _FORBIDDEN
        return logits_BV


def _known(row: Sequence[int] | Array, logits_V: Array) -> Array:
    """Ids of a row that have a logit; a table of embeddings may be longer than the vocabulary it predicts."""
    ids = np.asarray(row, np.int64)
    return ids[ids < len(logits_V)]


def _lengths(tokens: Tokens) -> Array:
    return np.fromiter(map(len, tokens), np.int64, len(tokens))
