"""When a row ends: at an end token, at a stop string, or at its greatest length.

Shapes: B rows.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from ..inputs.checks import Array
from .text import TextStream


class StopText:
    """Looks for stop strings in a text that arrives in parts.

    The text ends before the stop string that is complete first, character by character (of several at once, before the
    longest), however it was cut into parts. transformers leaves the stop string in the text.

    Attributes:
        stopped: Whether a stop string was found; what is pushed after it is ignored.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """Begin to look for strings that are not empty."""
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add a part; give what is no stop string, nor the beginning of one that may still be completed."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(place + len(stop), place) for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            # The least end is complete first; of equal ends, the least place is the longest string's.
            return text[: min(found)[1]]
        # What may begin a stop string is held back: at most all of one but its last letter.
        longest = min(max(map(len, self._stop), default=1) - 1, len(text))
        begun = next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def end(self) -> str:
        """Give what was held back: the text is over, so no stop string follows."""
        held, self._held = self._held, ""
        return held


class Stopping:
    """The rows of a batch, until each has ended.

    Attributes:
        done_B: Which rows have ended, bool (B,).
        rows: Each row's new tokens, without the end token; where a stop string ended it, up to the token that completed
            the string, as a string may end within a token.
        reasons: Why each row ended: "stop_token", "stop_string", "length"; None: it goes on.
    """

    def __init__(
        self,
        limits: Sequence[int],
        *,
        end_ids: Collection[int],
        stop: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        byte_tokens: Collection[int] = frozenset(),
    ) -> None:
        """Begin.

        Args:
            limits: Per row, how many new tokens it may have at most, at least 1.
            end_ids: Each ends a row.
            stop: Strings that end a row; they need `decode`.
            decode: Ids → text; None: `push` gives no texts, and costs next to nothing.
            byte_tokens: As for `TextStream`.
        """
        self._limits = limits
        self._end_ids = frozenset(end_ids)
        self._texts = None
        if decode is not None:
            self._texts = [(TextStream(decode, byte_tokens), StopText(stop)) for _ in limits]
        self.rows: list[list[int]] = [[] for _ in limits]
        self.reasons: list[str | None] = [None] * len(limits)
        self.done_B = np.zeros(len(limits), bool)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return bool(self.done_B.all())

    def push(self, next_B: Array) -> list[str]:
        """Add a token to each row that goes on; give the text of each that can be given out now."""
        new = [""] * len(self.rows)
        for b, token in enumerate(next_B.tolist()):
            if self.done_B[b]:
                continue
            if token in self._end_ids:
                self.reasons[b] = "stop_token"
            else:
                self.rows[b].append(token)
                if len(self.rows[b]) >= self._limits[b]:
                    self.reasons[b] = "length"
            if self._texts is not None:
                new[b] = self._text(b, token)
            self.done_B[b] = self.reasons[b] is not None
        return new

    def _text(self, b: int, token: int) -> str:
        assert self._texts is not None
        stream, stop = self._texts[b]
        text = "" if self.reasons[b] == "stop_token" else stop.push(stream.push(token))
        if self.reasons[b] is not None:
            # An incomplete character, which may complete a stop string too, is shown only at the end.
            text += stop.push(stream.end())
            text += stop.end()
        # In place of "length", too: the last token that was allowed may have completed the string.
        if stop.stopped:
            self.reasons[b] = "stop_string"
        return text
