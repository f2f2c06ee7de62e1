"""Beam search: the K likeliest texts of each prompt, grown side by side.

It is a state machine without a model: whoever holds the model feeds it the log probabilities of the next tokens, and
learns which beams to continue with what. Texts and scores are those of transformers 5.23's `generate`, in which every
step keeps more candidates than beams, so that K of them go on however many end, and an ended text counts only if it was
among the K best candidates of its step. Prompts do not influence each other.

Shapes: B prompts, K beams, V vocabulary, S new tokens so far, C candidates of a prompt, those that go on or end.
"""

from collections.abc import Sequence

import numpy as np

from tfm.errors import InputError

from ..checks import Array

_NEVER = np.float32(-1e9)  # the score of what must not win: far below any sum of log probabilities


class BeamSearch:
    """Beam search over B prompts.

    Attributes:
        done_B: Which prompts have their final texts, bool (B,). They stay in the batch, with token 0.
        tokens: What each running beam has so far without its prompt, int64 (B * K, S).
    """

    def __init__(
        self,
        limits: Sequence[int],
        *,
        num_beams: int,
        eos_token_ids: Sequence[int],
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        num_return_sequences: int = 1,
    ) -> None:
        """Begin.

        Args:
            limits: Per prompt, how many new tokens a text may have at most, at least 1.
            num_beams: K, at least 2.
            eos_token_ids: Each ends a text.
            length_penalty: A text's score is the sum of its log probabilities over its length to this power; the
                length includes the end token.
            early_stopping: When a prompt is done: True: with K ended texts; False: when its best running beam scores
                no better now than the worst of K ended ones; "never": when it could not at any length.
            num_return_sequences: How many texts of each prompt `finish` gives.
        """
        batch, self._beams = len(limits), num_beams
        self._limit_B = np.array(limits, np.int64)
        self._ends = np.array(sorted(set(eos_token_ids)), np.int64)
        self._keep = max(2, 1 + len(self._ends)) * num_beams
        self._length_penalty, self._early_stopping = length_penalty, early_stopping
        self._texts = num_return_sequences
        longest = int(self._limit_B.max(initial=0))
        self._step = 0
        self._running_BKS = np.zeros((batch, num_beams, longest), np.int64)
        self._score_BK = np.full((batch, num_beams), _NEVER, np.float32)
        self._score_BK[:, 0] = 0  # at first all beams are equal: one of them is enough
        self._ended_BKS = self._running_BKS.copy()
        self._ended_length_BK = np.zeros((batch, num_beams), np.int64)
        self._ended_score_BK = np.full((batch, num_beams), _NEVER, np.float32)
        self._has_ended_BK = np.zeros((batch, num_beams), bool)
        self.done_B = np.zeros(batch, bool)

    @property
    def done(self) -> bool:
        """Whether every prompt has its final texts."""
        return bool(self.done_B.all())

    @property
    def tokens(self) -> Array:
        """What each running beam has so far without its prompt, int64 (B * K, S)."""
        return self._running_BKS[:, :, : self._step].reshape(self._score_BK.size, self._step)

    def advance(self, log_probs: Array) -> tuple[Array, Array]:
        """Take one step.

        Args:
            log_probs: Of the next token after each running beam, float32 (B * K, V), after `log_softmax` and then the
                logits processors; at the first step (B, V) does, as all beams of a prompt are equal. Rows of prompts
                that are done are not read.

        Returns:
            The running beams' new tokens, int64 (B * K,), and which of the B * K beams before the step each continues,
            int64 (B * K,): caches are to be reordered by it. At the first step the parents are of B * K beams even if
            log_probs were not.

        Raises:
            InputError: Log probabilities of a prompt that is not done are NaN, or the vocabulary is too small.
        """
        batch, beams = self._score_BK.shape
        if self._step == 0 and len(log_probs) == batch:
            log_probs = np.repeat(log_probs, beams, 0)
        vocabulary = log_probs.shape[1]
        if vocabulary * beams < self._keep:
            raise InputError(
                f"beam search with {len(self._ends)} end tokens needs at least {self._keep // beams} tokens to choose "
                f"from, but this model has {vocabulary}; use num_beams=1"
            )
        tokens_BK = np.zeros((batch, beams), np.int64)
        parents_BK = np.arange(batch * beams).reshape(batch, beams)
        for b in np.flatnonzero(~self.done_B).tolist():
            rows_KV = log_probs[b * beams : (b + 1) * beams]
            tokens_BK[b], parents_K = self._advance_prompt(b, rows_KV)
            parents_BK[b] = b * beams + parents_K
        self._step += 1
        return tokens_BK.ravel(), parents_BK.ravel()

    def _advance_prompt(self, b: int, log_probs_KV: Array) -> tuple[Array, Array]:
        beams, step = self._beams, self._step
        total = (log_probs_KV + self._score_BK[b, :, None]).ravel()
        places_C = _largest(total, self._keep)
        score_C = total[places_C]
        if np.isnan(score_C).any():
            raise InputError(f"the log probabilities of prompt {b} hold NaN; check the model's outputs")
        parents_C, tokens_C = np.divmod(places_C, log_probs_KV.shape[1])
        texts_CS = self._running_BKS[b, parents_C]
        texts_CS[:, step] = tokens_C
        length = step + 1
        ends_C = np.isin(tokens_C, self._ends) | (length >= self._limit_B[b])

        going_C = score_C + np.where(ends_C, _NEVER, np.float32(0))
        on_K = _largest(going_C, beams)
        self._running_BKS[b] = texts_CS[on_K]
        self._score_BK[b] = going_C[on_K]

        ends_C[beams:] = False  # only the best K candidates may end
        ended_C = score_C / np.float32(length**self._length_penalty) + np.where(ends_C, np.float32(0), _NEVER)
        merged = np.concatenate([self._ended_score_BK[b], ended_C])
        best_K = _largest(merged, beams)
        self._ended_score_BK[b] = merged[best_K]
        self._ended_BKS[b] = np.concatenate([self._ended_BKS[b], texts_CS])[best_K]
        lengths = np.concatenate([self._ended_length_BK[b], np.full(len(texts_CS), length)])
        self._ended_length_BK[b] = lengths[best_K]
        self._has_ended_BK[b] = np.concatenate([self._has_ended_BK[b], ends_C])[best_K]
        self.done_B[b] = length >= self._limit_B[b] or self._is_settled(b, length)
        return tokens_C[on_K], parents_C[on_K]

    def _is_settled(self, b: int, length: int) -> bool:
        """Whether no running beam of a prompt is expected to enter its ended texts."""
        if not self._has_ended_BK[b].all():
            return bool(self._score_BK[b, 0] == -np.inf)  # nothing but forbidden tokens is left
        if self._early_stopping is True:
            return True
        if self._early_stopping == "never" and self._length_penalty > 0:
            length = int(self._limit_B[b])
        possible = self._score_BK[b, 0] / np.float32(length**self._length_penalty)
        return not possible > self._ended_score_BK[b].min()

    def finish(self) -> list[list[tuple[list[int], float]]]:
        """Give the texts.

        Returns:
            Per prompt the best texts, best first, each with its score: its new tokens without the one that ended it.
            Prompts that are not done give what has ended so far, and then their running beams.
        """
        return [self._finish_prompt(b) for b in range(len(self._limit_B))]

    def _finish_prompt(self, b: int) -> list[tuple[list[int], float]]:
        ended = [
            (self._ended_BKS[b, k, : self._ended_length_BK[b, k]].tolist(), float(self._ended_score_BK[b, k]))
            for k in np.flatnonzero(self._has_ended_BK[b])
        ]
        ended = [(text[:-1] if text[-1] in self._ends else text, score) for text, score in ended]
        if not self.done_B[b]:
            divisor = np.float32(max(self._step, 1) ** self._length_penalty)
            scores = (self._score_BK[b] / divisor).tolist()
            ended += [
                (row.tolist(), score) for row, score in zip(self._running_BKS[b, :, : self._step], scores, strict=True)
            ]
        return ended[: self._texts]


def _largest(values: Array, count: int) -> Array:
    """Places of the largest values, largest first; of equal ones the first. NaN counts as the largest."""
    top = np.partition(values, len(values) - count)[-count:]
    if np.isnan(top).any():
        return np.argsort(values)[: -count - 1 : -1]
    candidates = np.flatnonzero(values >= top[0])
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]
