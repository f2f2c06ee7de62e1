"""A text that goes on and on, of which nothing is read twice."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfm.errors import InputError

from ..control import CancelToken, Control
from ..inputs.batches import check_count, check_rows, length_limit
from ..inputs.chat_template import is_messages
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
        """Add a text, or token ids, and go on from there, as `Decoder.stream` does; or go on with a chat.

        Where the iterator is left, or ended from elsewhere, what it has given out stays part of the conversation. The
        next reply, or a rewind, ends an iterator that is not at its end.

        Args:
            input: A text, to which special tokens are added only at the beginning of a conversation; or token ids. Or a
                chat, all of its messages from the first: what the conversation has of it is not read again, and what it
                has besides is forgotten.
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
        are_messages = is_messages(input)
        text = self._model.apply_chat_template(input) if are_messages else input
        is_text = isinstance(text, str)
        new = self._model._tokenizer.encoding(text, special=not self.tokens, control=control).ids if is_text else text
        [row] = check_rows([new], self._model._reads)
        if are_messages:
            row = self._rest_of(row)
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

    def _rest_of(self, row: list[int]) -> list[int]:
        """Keep what a chat begins with, and give what is still to be read of it, which is a token at least."""
        most = min(len(row) - 1, len(self.tokens))
        same = next((place for place in range(most) if row[place] != self.tokens[place]), most)
        if same:
            self.rewind(same)
        else:
            self.tokens, self._state = [], self._model._new_state(1)
            self._turns += 1
        return row[same:]

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
