"""Decoder bundles: they continue a sequence.

Shapes: B batch, S new tokens, P past tokens, T all of them, C length of the cache, K key/value heads, H head size, V
vocabulary.
"""

from tfm.bundle import Signature

from .control import Control
from .generation.continuous import ContinuousBatch
from .generation.conversation import Conversation
from .generation.defaults import Limit
from .generation.generator import Generator
from .generation.loop import Begun
from .generation.state import DecoderState
from .generation.switching import SwitchingState
from .sessions.session import Session


class Decoder(Generator):
    """A bundle that continues a sequence.

    `run` takes input_ids, int64 (B, S); attention_mask, which of all tokens are real, int64 (B, T); position_ids, of
    the new tokens, int64 (B, S), where the model has positions of its own; and past_key_values.…, each float32
    (B, K, C, H), whose first P are the past: T = P + S. With num_logits_to_keep, an int64 scalar, it gives logits after
    so many of the last tokens, else after all of them, float32 (B, S, V), and present.…, each (B, K, T, H), or of
    length C where that is larger, with the new tokens behind the past.
    """

    def conversation(self) -> Conversation:
        """Begin a text that goes on and on, of which nothing is read twice."""
        return Conversation(self)

    def continuous_batch(self) -> ContinuousBatch:
        """Begin to generate texts side by side that come and go at any time."""
        return ContinuousBatch(self)

    @property
    def _decoder(self) -> Session:
        return self._sessions["model"]

    @property
    def _reads(self) -> Signature:
        return self._decoder.signature

    def _new_state(self, rows: int) -> DecoderState:
        generation = self.manifest.generation
        if generation is None or generation.short_length is None:
            return DecoderState(self._decoder, rows)
        return SwitchingState(self._decoder, rows, generation.short_length)

    def _begin(self, rows: list[list[int]], limit: Limit, control: Control) -> Begun:
        state = self._new_state(len(rows))
        limits = self._limits([len(row) for row in rows], limit)
        return Begun(
            state=state, logits_BV=state.read(rows, control), tokens=[list(row) for row in rows], limits=limits
        )
