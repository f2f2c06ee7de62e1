"""Token by token, until every row has ended: the likeliest one, one that is drawn, or those of the likeliest beams.

Shapes: B rows, K beams, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..control import Control
from ..inputs.checks import Array
from .beam import BeamSearch
from .constraint import Constraint
from .logits import LogitsProcessor, process_logits
from .lookup import PromptLookup
from .sampling import Sampler, log_softmax, softmax
from .settings import GenerationSettings, processors
from .state import DecoderState
from .stopping import Stopping


@dataclass(kw_only=True)
class Begun:
    """Prompts that have been read.

    Attributes:
        state: What the decoder has read.
        logits_BV: Of the token that follows each row.
        tokens: Each row's tokens, as the decoder sees them; grows with what is generated.
        limits: How many new tokens each row may get.
        constraint: The form that is asked for; None: any.
    """

    state: DecoderState
    logits_BV: Array
    tokens: list[list[int]]
    limits: list[int]
    constraint: Constraint | None = None

    def processors(
        self, settings: GenerationSettings, rows: Iterable[int], prompts: Sequence[int], end_ids: Sequence[int]
    ) -> list[LogitsProcessor]:
        """Make the processors of so many rows, each of which goes on from the prompt of that number.

        They know limits and lengths by row, so they are made anew whenever rows have left.
        """
        rows = list(rows)
        return processors(
            settings,
            prompt_lengths=[prompts[row] for row in rows],
            limits=[self.limits[row] for row in rows],
            eos_token_ids=end_ids,
            vocabulary=self.logits_BV.shape[-1],
            constraint=self.constraint,
        )


def continue_rows(
    begun: Begun,
    settings: GenerationSettings,
    stopping: Stopping,
    end_ids: Sequence[int],
    sampler: Sampler | None = None,
    control: Control | None = None,
) -> Iterator[list[str]]:
    """Generate, one token of every row that has not ended at a time.

    Rows that have ended leave the batch once they are a quarter of it. One row by itself may be read with guesses.

    Args:
        begun: Where to go on from; its `tokens` grow, end tokens included.
        settings: Which processors the logits go through.
        stopping: When a row ends; collects what is generated.
        end_ids: The bundle's end tokens.
        sampler: Draws, with a generator for each row; None: the likeliest token is taken.
        control: What may end it all before its time.

    Yields:
        After every token, the new text of each row, where `stopping` makes texts.
    """
    state, logits_BV = begun.state, begun.logits_BV
    prompts = [len(row) for row in begun.tokens]
    # Which prompts are still in the batch. `begun.tokens`, `limits` and `stopping` count all of them.
    active = np.arange(len(prompts))
    chain = begun.processors(settings, active, prompts, end_ids)
    lookup = _lookup(begun, settings)
    while True:
        scores_BV = process_logits(chain, [begun.tokens[prompt] for prompt in active], logits_BV)
        next_B = _choose(scores_BV, stopping.done_B[active], sampler)
        # `stopping` counts all prompts, and passes over the token of those that have left.
        token_B = np.zeros(len(prompts), np.int64)
        token_B[active] = next_B
        for prompt in active[~stopping.done_B[active]]:
            begun.tokens[prompt].append(int(token_B[prompt]))
        # Before anybody goes on from the state otherwise.
        if lookup is not None:
            lookup.took()
        # Before the next step: what is known is given out while that is still to be computed.
        yield stopping.push(token_B)
        if stopping.done:
            return
        left = np.flatnonzero(~stopping.done_B[active])
        # Leaving copies the caches of those that stay, so it is not done for every single row.
        if 4 * (len(active) - len(left)) >= len(active):
            active, next_B = active[left], next_B[left]
            chain = begun.processors(settings, active, prompts, end_ids)
            state.select(left)
            if sampler is not None:
                sampler.select(left)
        logits_BV = state.step(next_B, control) if lookup is None else lookup.logits(control)


def _choose(scores_BV: Array, ended_B: Array, sampler: Sampler | None) -> Array:
    """The likeliest token of each row, or one that is drawn."""
    if sampler is None:
        return scores_BV.argmax(-1)
    # Processors may leave nothing to a row that has ended.
    if ended_B.any():
        scores_BV = np.where(ended_B[:, None], np.float32(0), scores_BV)
    return sampler.draw(softmax(scores_BV))


def _lookup(begun: Begun, settings: GenerationSettings) -> PromptLookup | None:
    """What guesses, if that is asked for: only one row by itself can be read with guesses."""
    if not settings.prompt_lookup_num_tokens or not begun.state.room_ahead:
        return None
    return PromptLookup(begun.state, begun.tokens[0], begun.limits[0], settings.prompt_lookup_num_tokens)


def search_beams(
    begun: Begun, settings: GenerationSettings, end_ids: Sequence[int], control: Control | None = None
) -> list[list[tuple[list[int], float]]]:
    """Search the likeliest continuations of each row by beams: the best first, with their scores, without end tokens.

    Rows that are done leave the batch once they are half of it: what is left is copied for each beam.
    """
    count, state = settings.num_beams, begun.state
    beams = BeamSearch(
        begun.limits,
        num_beams=count,
        eos_token_ids=sorted({*end_ids, *settings.stop_token_ids}),
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        num_return_sequences=settings.num_return_sequences,
    )
    # Prompts that are still in the batch.
    active = np.arange(len(begun.tokens))
    rows = np.repeat(active, count)
    state.select(rows)
    logits_BV = begun.logits_BV[rows]
    lengths = [len(row) for row in begun.tokens]
    chain = begun.processors(settings, rows, lengths, end_ids)
    while True:
        # Lists of all beams' tokens are made for processors alone.
        new = beams.tokens(active).tolist() if chain else []
        tokens = [[*begun.tokens[row], *more] for row, more in zip(rows, new, strict=True)] if chain else []
        token_B, parent_B = beams.advance(process_logits(chain, tokens, log_softmax(logits_BV)), active)
        if beams.done:
            return beams.finish()
        left = np.flatnonzero(~beams.done_B[active])
        if 2 * len(left) <= len(active):
            # (left, K) → the rows of all beams of the prompts that stay.
            kept = (left[:, None] * count + np.arange(count)).ravel()
            active, rows, token_B = active[left], rows[kept], token_B[kept]
            chain = begun.processors(settings, rows, lengths, end_ids)
            # Leaving and going on from other beams is one copy of the caches.
            state.select(parent_B[kept])
        else:
            state.reorder(parent_B)
        logits_BV = state.step(token_B, control)


def continue_greedily(
    state: DecoderState, prompts: Sequence[Sequence[int]], end_ids: Sequence[int], limit: int
) -> list[list[int]]:
    """Read prompts and take the likeliest next token, at most `limit` times, until every row has ended.

    Returns:
        Per row the new ids, without the one that ended it.
    """
    rows = [list(row) for row in prompts]
    begun = Begun(state=state, logits_BV=state.read(rows), tokens=rows, limits=[limit] * len(rows))
    stopping = Stopping(begun.limits, end_ids=end_ids)
    for _ in continue_rows(begun, GenerationSettings(), stopping, end_ids):
        pass
    return stopping.rows
