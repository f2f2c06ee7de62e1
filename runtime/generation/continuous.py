"""Texts that begin and end at any time, and are generated side by side: continuous batching (Yu et al. 2022, Orca).

Between two steps rows join and leave, so that none waits for another's end, and each step's weights are read once for
all of them.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfm.errors import InputError

from ..control import Control
from ..inputs.checks import Array
from .logits import LogitsProcessor, process_logits
from .loop import Begun
from .sampling import Sampler, softmax
from .stopping import Stopping

if TYPE_CHECKING:
    from ..decoder import Decoder


@dataclass(eq=False)
class Row:
    """One text that is being generated.

    Attributes:
        prompt_tokens: How many tokens its prompt has.
        tokens: Its tokens, those of the prompt first.
        text: What the last step added, where the prompt was a text or a chat.
        reason: Why it ended: "stop_token", "stop_string", "length", or "error"; None: it goes on.
        error: What ended it, as where a form that it is to have cannot be had.
    """

    prompt_tokens: int
    tokens: list[int]
    text: str = ""
    reason: str | None = None
    error: InputError | None = None
    _chain: list[LogitsProcessor] = field(default_factory=list, repr=False)
    _sampler: Sampler | None = field(default=None, repr=False)
    _stopping: Stopping | None = field(default=None, repr=False)
    _logits_1V: Array = field(default_factory=lambda: np.empty((1, 0), np.float32), repr=False)

    @property
    def new_tokens(self) -> int:
        """How many tokens were generated, an end token included."""
        return len(self.tokens) - self.prompt_tokens

    def _take(self) -> int:
        """Take the next token; where there is none, the row ends by itself, and the others go on."""
        try:
            return self._choose()
        except InputError as error:
            self.text, self.reason, self.error = "", "error", error
            return 0

    def _choose(self) -> int:
        scores_1V = process_logits(self._chain, [self.tokens], self._logits_1V)
        drawn_1 = scores_1V.argmax(-1) if self._sampler is None else self._sampler.draw(softmax(scores_1V))
        assert self._stopping is not None
        self.tokens.append(int(drawn_1[0]))
        self.text = self._stopping.push(drawn_1)[0]
        self.reason = self._stopping.reasons[0]
        return int(drawn_1[0])


class ContinuousBatch:
    """What is generated side by side; made by `Decoder.continuous_batch`. For one thread at a time.

    Attributes:
        rows: Those that go on, in no order that means anything.
    """

    def __init__(self, model: "Decoder") -> None:
        self._model = model
        self._state = model._new_state(0)
        self.rows: list[Row] = []

    def add(self, input: Any, max_new_tokens: int | None = None, **settings: Any) -> Row:
        """Read a prompt, which takes as long as it is, and let it go on beside the others from the next step on.

        Args:
            input: A text, token ids or a chat, as for `Decoder.stream`.
            max_new_tokens: As for `Decoder.stream`.
            **settings: As for `Decoder.stream`; no guesses by prompt lookup.

        Raises:
            InputError: As for `Decoder.stream`; the other rows go on.
        """
        model, control = self._model, Control(None, None)
        chosen, limit = model._stream_settings(max_new_tokens, settings)
        [ids], are_texts = model._to_rows(model._written([input]), model._reads, control)
        begun: Begun = model._begin([ids], limit, control)
        begun.constraint = model._constraint(chosen)
        row = Row(len(ids), list(ids))
        row._chain = begun.processors(chosen, [0], [len(ids)], model._ends)
        row._sampler = Sampler(chosen.seed, [0]) if chosen.do_sample else None
        row._stopping = model._stopping(begun, chosen, are_texts)
        row._logits_1V = begun.logits_BV
        # Read apart from the others, whose caches have other lengths; then all go on at one place.
        self._state.join([begun.state])
        self.rows.append(row)
        return row

    def step(self) -> list[Row]:
        """Give every row one more token; give all rows, of which those with a reason have left."""
        # All choose before any leaves: the places of the logits are those of the last step.
        rows, taken = self.rows, np.array([row._take() for row in self.rows], np.int64)
        left = np.array([place for place, row in enumerate(rows) if row.reason is None], np.int64)
        self._keep(left)
        if len(left):
            logits_BV = self._state.step(taken[left])
            for place, row in enumerate(self.rows):
                row._logits_1V = logits_BV[place : place + 1]
        return rows

    def remove(self, row: Row) -> None:
        """Let a row leave, whose text nobody waits for any more; one that has ended has left already."""
        self._keep(np.array([place for place, other in enumerate(self.rows) if other is not row], np.int64))

    def _keep(self, places: Array) -> None:
        if len(places) < len(self.rows):
            self._state.select(places)
            self.rows = [self.rows[place] for place in places]
