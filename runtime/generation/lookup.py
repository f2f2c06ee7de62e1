"""Prompt lookup: what followed the same tokens before is read along with the next token, and kept where it was right.

Reading a few more tokens at once takes a part of a step's time: of SmolLM2 in int8 four take 1.5 times as long as one.
So where a text repeats what it has, as summaries, corrections and code do, several tokens come of one run. A guess is
kept only where the loop chose the very same token after the logits before it: the text is the one without guesses
(Leviathan et al. 2023, arXiv:2211.17192, with a draft that is certain; the name is transformers').

Shapes: S tokens read at once, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..control import Control
from ..inputs.checks import Array
from .state import DecoderState

_MATCHES = (3, 2)
"""So many last tokens must have been there before: the longer first."""

_FIRST = 4
"""Guesses at a time in the beginning."""

_LONGEST_PAUSE = 32
"""Tokens without a guess, at most, after guesses that were all wrong."""


class PromptLookup:
    """Steps of one row, each with guesses of what follows."""

    def __init__(self, state: DecoderState, tokens: Sequence[int], limit: int, most: int) -> None:
        """Begin.

        Args:
            state: Has read all tokens.
            tokens: The row's; grows by every one that is chosen, before `took` is called.
            limit: How many more there may be.
            most: Guesses at a time.
        """
        self._state, self._tokens, self._end, self._most = state, tokens, len(tokens) + limit, most
        # Guesses that have been read, and the logits after each.
        self._ahead: deque[tuple[int, Array]] = deque()
        self._known: Array | None = None
        # Some tokens → where what followed them last time is.
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._count, self._asked, self._right = min(_FIRST, most), 0, 0
        self._failed = self._pause = 0

    def took(self) -> None:
        """Take note of the token that was chosen last; if it is none that was guessed, the guesses are forgotten."""
        self._known = None
        if not self._ahead:
            return
        if self._ahead[0][0] == self._tokens[-1]:
            self._known = self._ahead.popleft()[1]
            self._right += 1
            return
        self._state.rewind(int(self._state.length_B[0]) - len(self._ahead))
        self._ahead.clear()

    def logits(self, control: Control | None = None) -> Array:
        """Give the logits after the last token, (1, V); they are good until the next are given."""
        if self._known is not None:
            return self._known[None]
        token = self._tokens[-1]
        self._adapt()
        guesses = self._guess()
        self._asked, self._right = len(guesses), 0
        if not guesses:
            return self._state.step(np.array([token]), control)
        found_SV = self._state.read_ahead([token, *guesses], control)
        self._ahead.extend(zip(guesses, found_SV[1:], strict=True))
        return found_SV[:1]

    def _adapt(self) -> None:
        """Guess more where all were right, and for a while nothing where none was."""
        if not self._asked:
            self._pause = max(0, self._pause - 1)
        elif self._right:
            more = 2 * self._asked if self._right == self._asked else self._right + 1
            self._count, self._failed = min(max(more, 2), self._most), 0
        else:
            self._failed += 1
            self._pause = min(2**self._failed, _LONGEST_PAUSE)

    def _guess(self) -> list[int]:
        """What followed the last tokens when they were there before; nothing where they were not."""
        self._index()
        tokens, known = self._tokens, len(self._tokens)
        # After the last token that there may be, no logits are wanted.
        count = min(self._count, self._end - known - 1, self._state.room_ahead)
        if self._pause or count < 1:
            return []
        found = (self._places.get(tuple(tokens[known - length :])) for length in _MATCHES if known >= length)
        start = next((place for place in found if place is not None), None)
        guesses: list[int] = []
        while start is not None and len(guesses) < count:
            # What repeats itself goes on behind the end: there the guesses themselves are copied.
            place = start + len(guesses)
            guesses.append(int(tokens[place]) if place < known else guesses[place - known])
        return guesses

    def _index(self) -> None:
        """Note what followed the tokens that are new."""
        known = len(self._tokens)
        for length in _MATCHES:
            for place in range(max(self._indexed, length), known):
                self._places[tuple(self._tokens[place - length : place])] = place
        self._indexed = known
