"""Beam search: the K likeliest texts of each prompt, grown side by side.

It is a state machine without a model: whoever holds the model feeds it the log probabilities of the next tokens, and
learns which beams to continue with what. Texts and scores are those of transformers 5.23's `generate`, in which every
step keeps more candidates than beams, so that K of them go on however many end, and an ended text counts only if it was
among the K best candidates of its step. Prompts do not influence each other.

Shapes: B prompts, A of them in the batch, G of these not done, K beams, V vocabulary, S new tokens so far, C candidates
of a prompt, those that go on or end.
"""

from collections.abc import Sequence

import numpy as np

from tfm.errors import InputError

from ..inputs.checks import Array

_NEVER = np.float32(-1e9)  # the score of what must not win: far below any sum of log probabilities


class BeamSearch:
    """Beam search over B prompts.

    Attributes:
        done_B: Which prompts have their final texts, bool (B,). Those that stay in the batch get token 0.
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
        # Each beam can end in as many ways as there are end tokens, E; so that of K · (1 + E)
        # candidates K go on at least.
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

    def tokens(self, prompts: Array | None = None) -> Array:
        """What each running beam of some prompts, or of all, has so far without its prompt, int64 (A * K, S)."""
        running_AKS = (
            self._running_BKS[:, :, : self._step] if prompts is None else self._running_BKS[prompts, :, : self._step]
        )
        return running_AKS.reshape(running_AKS.shape[0] * self._beams, self._step)

    def advance(self, log_probs: Array, prompts: Array | None = None) -> tuple[Array, Array]:
        """Take one step.

        Args:
            log_probs: Of the next token after each running beam, float32 (A * K, V), after `log_softmax` and then the
                logits processors; at the first step (A, V) does, as all beams of a prompt are equal. Rows of prompts
                that are done are not read.
            prompts: Which A prompts these are of, in ascending order: at least those that are not done; None: all.

        Returns:
            The running beams' new tokens, int64 (A * K,), and which of the A * K beams before the step each continues,
            int64 (A * K,): caches are to be reordered by it. At the first step the parents are of A * K beams even if
            log_probs were not.
        """
        beams = self._beams
        prompts = np.arange(len(self.done_B)) if prompts is None else prompts
        if self._step == 0 and len(log_probs) == len(prompts):
            log_probs = np.repeat(log_probs, beams, 0)
        vocabulary = log_probs.shape[1]
        if vocabulary * beams < self._keep:
            raise InputError(
                f"beam search with {len(self._ends)} end tokens needs at least {self._keep // beams} tokens to choose "
                f"from, but this model has {vocabulary}; use num_beams=1"
            )
        tokens_AK = np.zeros((len(prompts), beams), np.int64)
        parents_AK = np.arange(len(prompts) * beams).reshape(-1, beams)
        going = np.flatnonzero(~self.done_B[prompts])
        log_probs_AKV = log_probs.reshape(len(prompts), beams, vocabulary)
        if len(going) < len(prompts):
            log_probs_AKV = log_probs_AKV[going]
        tokens_GK, parents_GK = self._advance(prompts[going], log_probs_AKV)
        tokens_AK[going] = tokens_GK
        parents_AK[going] = going[:, None] * beams + parents_GK
        self._step += 1
        return tokens_AK.ravel(), parents_AK.ravel()

    def _advance(self, going_G: Array, log_probs_GKV: Array) -> tuple[Array, Array]:
        """Take one step of G prompts that are not done: new tokens and parents, each (G, K)."""
        step, length = self._step, self._step + 1
        row_G1 = np.arange(len(going_G))[:, None]
        limit_G = self._limit_B[going_G]
        # (G, K, V) → (G, K · V): a place stands for a beam and its token, and is taken apart below.
        total_GX = (log_probs_GKV + self._score_BK[going_G][:, :, None]).reshape(len(going_G), -1)  # X: K * V
        places_GC = _largest(total_GX, self._keep)
        score_GC = total_GX[row_G1, places_GC]
        if np.isnan(score_GC).any():
            wrong = going_G[np.isnan(score_GC).any(1)][0]
            raise InputError(f"the log probabilities of prompt {wrong} hold NaN; check the model's outputs")
        parents_GC, tokens_GC = np.divmod(places_GC, log_probs_GKV.shape[2])
        ends_GC = (tokens_GC[:, :, None] == self._ends).any(2) | (length >= limit_G)[:, None]

        # What ends goes on only where too few others are left: at the limit, where all end.
        going_score_GC = np.where(ends_GC, score_GC + _NEVER, score_GC)
        on_GK = _largest(going_score_GC, self._beams)
        parents_GK, tokens_GK = parents_GC[row_G1, on_GK], tokens_GC[row_G1, on_GK]
        running_GKS = self._running_BKS[going_G]
        # Before the running texts are reordered: candidates name their parents by the old order.
        if ends_GC[:, : self._beams].any():
            self._end(going_G, running_GKS, parents_GC, tokens_GC, score_GC, ends_GC)
        running_GKS = running_GKS[row_G1, parents_GK]
        running_GKS[:, :, step] = tokens_GK
        self._running_BKS[going_G] = running_GKS
        self._score_BK[going_G] = going_score_GC[row_G1, on_GK]
        self.done_B[going_G] = (length >= limit_G) | self._are_settled(going_G, length)
        return tokens_GK, parents_GK

    def _end(
        self, going_G: Array, running_GKS: Array, parents_GC: Array, tokens_GC: Array, score_GC: Array, ends_GC: Array
    ) -> None:
        """Put candidates that end among the best ended texts of their prompts."""
        length, row_G1 = self._step + 1, np.arange(len(going_G))[:, None]
        ends_GC = ends_GC & (np.arange(ends_GC.shape[1]) < self._beams)  # only the best K candidates may end
        texts_GCS = running_GKS[row_G1, parents_GC]
        texts_GCS[:, :, self._step] = tokens_GC
        ended_GC = score_GC / np.float32(length**self._length_penalty) + np.where(ends_GC, np.float32(0), _NEVER)
        score = np.concatenate([self._ended_score_BK[going_G], ended_GC], 1)
        best_GK = _largest(score, self._beams)
        for kept, new in (
            (self._ended_score_BK, ended_GC),
            (self._ended_length_BK, np.full(ends_GC.shape, length)),
            (self._has_ended_BK, ends_GC),
        ):
            kept[going_G] = np.concatenate([kept[going_G], new], 1)[row_G1, best_GK]
        texts = np.concatenate([self._ended_BKS[going_G], texts_GCS], 1)
        self._ended_BKS[going_G] = texts[row_G1, best_GK]

    def _are_settled(self, going_G: Array, length: int) -> Array:
        """Whether no running beam of a prompt is expected to enter its ended texts, bool (G,)."""
        best_G = self._score_BK[going_G, 0]
        full_G = self._has_ended_BK[going_G].all(1)
        if not full_G.any():
            return best_G == -np.inf  # nothing but forbidden tokens is left
        if self._early_stopping is True:
            return full_G | (best_G == -np.inf)
        length_G = np.full(len(going_G), length)
        if self._early_stopping == "never" and self._length_penalty > 0:
            # Scores are negative, so divided by the power of the greatest length they are the best that
            # they can become.
            length_G = self._limit_B[going_G]
        possible_G = best_G / (length_G**self._length_penalty).astype(np.float32)
        beaten_G = ~(possible_G > self._ended_score_BK[going_G].min(1))
        return np.where(full_G, beaten_G, best_G == -np.inf)

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


def _largest(values_GX: Array, count: int) -> Array:
    """Places of each row's largest values, largest first, (G, count); of equal ones the first. NaN is the largest."""
    row_G1 = np.arange(len(values_GX))[:, None]
    # A sort of all K · V numbers would take longer than to find these, and to sort them alone.
    positions = np.argpartition(values_GX, values_GX.shape[1] - count, 1)[:, -count:]
    # By place, so that the stable sort at the end puts the first of equals first.
    positions.sort(1)
    found = values_GX[row_G1, positions]
    least_G1 = found.min(1, keepdims=True)
    tied_G = (values_GX == least_G1).sum(1) > (found == least_G1).sum(1)
    if tied_G.any():  # some that equal the least of them are left out, and may be the first
        for row in np.flatnonzero(tied_G):
            candidates = np.flatnonzero(values_GX[row] >= least_G1[row])
            positions[row] = candidates[np.argsort(-values_GX[row, candidates], kind="stable")[:count]]
        found = values_GX[row_G1, positions]
    return positions[row_G1, np.argsort(-found, 1, kind="stable")]
