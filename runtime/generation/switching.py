"""What a decoder has read whose keys depend on how long the text is: LongRoPE turns all of a long one by other angles.

Phi 3 has one set of angles up to the length it was trained on and another beyond (Ding et al. 2024, arXiv:2402.13753).
Keys that are cached were turned by the first. So where a text grows past that length, or is cut back below it, all of
its tokens are read anew, as transformers does.
"""

from collections.abc import Sequence

import numpy as np

from ..control import Control
from ..inputs.batches import pad_rows
from ..inputs.checks import Array
from ..sessions.session import Session
from .state import DecoderState


class SwitchingState(DecoderState):
    """Rows of one length that a decoder continues; see `DecoderState`. The graph reads all of a batch in one way."""

    def __init__(self, decoder: Session, rows: int, length: int) -> None:
        """Begin with nothing read.

        Args:
            decoder: As for `DecoderState`.
            rows: B.
            length: Tokens up to which a text is short.
        """
        super().__init__(decoder, rows)
        self._short, self._is_long = length, False
        self._ids: list[list[int]] = [[] for _ in range(rows)]

    def read(self, rows: Sequence[Sequence[int]], control: Control | None = None) -> Array:
        """Read new tokens of every row; see `DecoderState.read`."""
        whole = [[*had, *map(int, new)] for had, new in zip(self._ids, rows, strict=True)]
        if self._is_long != self._will_be_long(rows):
            return self._read_anew(whole, control)
        logits_BV = super().read(rows, control)
        self._ids = whole
        return logits_BV

    def step(self, token_B: Array, control: Control | None = None) -> Array:
        """Read one new token of every row; see `DecoderState.step`."""
        new = [[int(token)] for token in token_B]
        if self._is_long != self._will_be_long(new):
            return self._read_anew([[*had, *token] for had, token in zip(self._ids, new, strict=True)], control)
        logits_BV = super().step(token_B, control)
        for had, token in zip(self._ids, new, strict=True):
            had += token
        return logits_BV

    @property
    def room_ahead(self) -> int:
        """How many guesses `read_ahead` takes: none may make a long text of a short one, as it may be wrong."""
        room = super().room_ahead
        return room if self._is_long or not room else max(0, min(room, self._short - len(self._ids[0]) - 1))

    def read_ahead(self, ids: Sequence[int], control: Control | None = None) -> Array:
        """Read the next token of the only row, and guesses; see `DecoderState.read_ahead`."""
        logits_SV = super().read_ahead(ids, control)
        self._ids[0] += map(int, ids)
        return logits_SV

    def rewind(self, length: int) -> None:
        """Forget all but the first places; see `DecoderState.rewind`."""
        super().rewind(length)
        self._ids = [had[:kept] for had, kept in zip(self._ids, self.length_B.tolist(), strict=True)]

    def reorder(self, parent_B: Array) -> None:
        """Let every row go on from another; see `DecoderState.reorder`."""
        super().reorder(parent_B)
        self._ids = [list(self._ids[parent]) for parent in parent_B]

    def select(self, rows: Array) -> None:
        """Go on with some of the rows; see `DecoderState.select`."""
        super().select(rows)
        self._ids = [list(self._ids[row]) for row in rows]

    def _will_be_long(self, rows: Sequence[Sequence[int]]) -> bool:
        return max(len(had) + len(new) for had, new in zip(self._ids, rows, strict=True)) > self._short

    def _read_anew(self, whole: list[list[int]], control: Control | None) -> Array:
        """Read all tokens of all rows in one run, as parts of a long text would be read as short ones."""
        self.rewind(0)
        # Nothing has been read until all has: who stops meanwhile begins at the beginning.
        self._ids = [[] for _ in whole]
        self.length_B[:] = 0
        self._is_long = max(map(len, whole)) > self._short
        ids_BS, real_BS = pad_rows(whole, left=True)
        self._reserve(ids_BS.shape[1])
        try:
            logits_BV = self._run(ids_BS, real_BS, control)[:, 0]
        except BaseException:
            self._is_long = False
            raise
        self._ids = whole
        return np.array(logits_BV)
