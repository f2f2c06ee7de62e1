"""Decoder bundles: they continue a sequence.

Shapes: B batch, S new tokens, P positions with logits, C length of the cache, K key/value heads, H head size, V
vocabulary.
"""

from tfm.bundle import Signature

from .control import Control
from .generation.conversation import Conversation
from .generation.defaults import Limit
from .generation.generator import Generator
from .generation.loop import Begun
from .generation.state import DecoderState
from .sessions.session import Session


class Decoder(Generator):
    """A bundle that continues a sequence.

    `run` takes input_ids, int64 (B, S); cache_position, how many tokens each row has in the cache already, int64 (B,);
    logits_position, after which of the new tokens logits are wanted, int64 (B, P) in [0, S); and that cache,
    past_key_values.…, each float32 (B, K, C, H), with room for the new tokens too. It gives logits, float32 (B, P, V),
    and the cache present.…, each (B, K, C, H), with the new tokens in it.
    """

    def conversation(self) -> Conversation:
        """Begin a text that goes on and on, of which nothing is read twice."""
        return Conversation(self)

    @property
    def _decoder(self) -> Session:
        return self._sessions["model"]

    @property
    def _reads(self) -> Signature:
        return self._decoder.signature

    def _begin(self, rows: list[list[int]], limit: Limit, control: Control) -> Begun:
        state = DecoderState(self._decoder, len(rows))
        limits = self._limits([len(row) for row in rows], limit)
        return Begun(
            state=state, logits_BV=state.read(rows, control), tokens=[list(row) for row in rows], limits=limits
        )
