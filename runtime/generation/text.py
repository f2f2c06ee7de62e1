"""Text while its tokens arrive: what is given out is never taken back."""

import re
from collections.abc import Callable, Collection, Mapping

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WINDOW = 32  # tokens; decoding a window for every token is what a token costs
_CONTEXT = 16  # tokens that a new window starts with
_UNALIGNED = 3  # characters at a window's start that may differ: the rest of a character's bytes, or "##"


def byte_token_ids(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Find the ids of tokens that stand for one byte each, "<0x00>" to "<0xFF>", as SentencePiece falls back to."""
    return frozenset(token for name, token in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", name))


class TextStream:
    """Turns tokens into text one by one, at a cost that does not grow with the text.

    Only the last tokens are decoded again, together with some before them: a token's text depends on what is before it
    (an incomplete UTF-8 character, a space that a text must not begin with). The parts together are exactly what
    decoding all tokens at once gives, for the decoders of byte-level BPE, WordPiece, Unigram and SentencePiece BPE.
    """

    def __init__(self, decode: Callable[[list[int]], str], byte_tokens: Collection[int] = frozenset()) -> None:
        """Begin.

        Args:
            decode: Ids → text.
            byte_tokens: As `byte_token_ids` gives them: text waits until a run of them has ended, because one invalid
                byte makes the whole run unreadable.
        """
        self._decode = decode
        self._byte_tokens = byte_tokens
        self._window: list[int] = []
        self._given = 0  # characters of the window's text
        self._in_run = False

    def push(self, token: int) -> str:
        """Add a token; give text that no later token changes, "" where there is nothing of it yet."""
        self._window.append(token)
        # What is left out of texts, as special tokens are, does not end a run.
        self._in_run = token in self._byte_tokens or (self._in_run and not self._decode([token]))
        if self._in_run:
            return ""
        text = self._decode(self._window)
        # An incomplete character shows as one U+FFFD, or as one per byte.
        # At most three: that is how many bytes of a character in UTF-8 there may be before its last.
        stable = len(text) - min(len(text) - len(text.rstrip(_REPLACEMENT)), 3)
        new = text[self._given : stable]
        # Never back, even where the stable text is shorter now: what was given out stays so.
        self._given = max(self._given, stable)
        if len(self._window) > _WINDOW:
            self._shorten(text)
        return new

    def end(self) -> str:
        """Give the rest of the text, incomplete characters included."""
        text = self._decode(self._window)[self._given :] if self._window else ""
        self._window, self._given, self._in_run = [], 0, False
        return text

    def _shorten(self, text: str) -> None:
        """Let the window begin later, if its text then ends in the same way, and in more than is yet to be given."""
        later = self._window[-_CONTEXT:]
        later_text = self._decode(later)
        same, waiting = len(later_text) - _UNALIGNED, len(text) - self._given
        if same > waiting and text.endswith(later_text[-same:]):
            self._window, self._given = later, len(later_text) - waiting
