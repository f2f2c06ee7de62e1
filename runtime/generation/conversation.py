"""A text that goes on and on, of which nothing is read twice."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfm.errors import InputError

from ..control import CancelToken, Control
from ..inputs.batches import check_count, check_rows, length_limit
from .loop import Begun

if TYPE_CHECKING:
    from ..decoder import Decoder


class Conversation:
    """What a decoder has read and said, kept in its cache; made by `Decoder.conversation`. For one thread at a time.

    Attributes:
        tokens: All of it, as token ids, end tokens included.
    """

    def __init__(self, model: "Decoder") -> None:
        self._model = model
        self._state = model._new_state(1)
        self.tokens: list[int] = []
        self._turns = 0

    def reply(
        self,
        input: Any,
        max_new_tokens: int | None = None,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> Iterator[Any]:
        """Add a text, or token ids, and go on from there, as `Decoder.stream` does.

        Where the iterator is left, or ended from elsewhere, what it has given out stays part of the conversation. The
        next reply, or a rewind, ends an iterator that is not at its end.

        Args:
            input: A text, to which special tokens are added only at the beginning of a conversation; or token ids.
            max_new_tokens: At most so many new tokens; None: as the manifest says.
            cancel: Ends the reply from elsewhere.
            timeout: Seconds after which it ends.
            **settings: As for `Decoder.stream`.

        Yields:
            Parts of the text, or ids where the input is ids.

        Raises:
            InputError: As for `Decoder.stream`; the conversation has become longer than the model takes; or, from the
                iterator, it has gone on without this reply.
        """
        control = Control(cancel, timeout)
        chosen, limit = self._model._stream_settings(max_new_tokens, settings)
        is_text = isinstance(input, str)
        new = self._model._tokenizer.encoding(input, special=not self.tokens, control=control).ids if is_text else input
        [row] = check_rows([new], self._model._reads)
        had, longest = len(self.tokens), length_limit(self._model._reads)
        if longest is not None and had + len(row) > longest:
            raise InputError(
                f"the conversation has {had} tokens, so {len(row)} more do not fit into the {longest} that this model "
                "takes; rewind it, or begin another"
            )
        limits = self._model._limits([had + len(row)], limit)
        self._state.rewind(had)  # where Ctrl-C came before the tokens were kept
        # The last token of a reply was chosen, but not read yet; nor were those of a reply cut short.
        unread = [*self.tokens[int(self._state.length_B[0]) :], *row]
        logits_BV = self._state.read([unread], control)
        self.tokens += row
        # From here on an earlier reply that is still held may not go on: both would use one cache.
        self._turns += 1
        begun = Begun(state=self._state, logits_BV=logits_BV, tokens=[self.tokens], limits=limits)
        return self._of_this_turn(self._turns, self._model._parts(begun, chosen, is_text, control))

    def _of_this_turn(self, turn: int, parts: Iterator[Any]) -> Iterator[Any]:
        """Give out parts while nothing else uses the cache that they are made with."""
        while True:
            if turn != self._turns:
                raise InputError("the conversation went on after this reply; read a reply to its end, or leave it")
            try:
                part = next(parts)
            except StopIteration:
                return
            yield part

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens, at least 1, without reading those again.

        Raises:
            InputError: There are not so many.
        """
        if check_count("length", length) > len(self.tokens):
            raise InputError(f"the conversation has {len(self.tokens)} tokens, so it cannot be cut to {length}")
        self._turns += 1
        del self.tokens[length:]
        self._state.rewind(length)
