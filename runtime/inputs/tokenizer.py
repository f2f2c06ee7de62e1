"""A bundle's tokenizer.json: from texts to ids and back."""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tfm.bundle import brief, read_file
from tfm.errors import BundleError, InputError, TfmError

from ..control import Control
from .chat_template import TemplatedText
from .cut import warn
from .row import Row, is_pair, row_of

Strategy = Literal["longest_first", "only_first", "only_second"]
"""Which text of a pair is cut where both are too long together, as tokenizers calls it."""

_PER_TOKEN = 16
"""Characters of a text, four times as many as an English token has on average, read for each token that counts."""

_MARGIN = 64
"""Tokens beyond those that count: the last ones of a beginning may be others in the whole text."""

_LONGEST_WORD = 256
"""Characters looked through for the end of a word; less than `_PER_TOKEN` times `_MARGIN`."""


class Tokenizer:
    """Wraps `tokenizers.Tokenizer`. What its file says of padding and truncation is overridden.

    Attributes:
        unknown_id: Stands for what is not in the vocabulary; None: nothing does.
    """

    def __init__(
        self,
        path: Path,
        *,
        content: bytes | None = None,
        max_tokens: int | None = None,
        most_tokens: int | None = None,
        refuse_unknown: bool = False,
        truncation_side: str = "right",
        lower_case: bool = False,
    ) -> None:
        """Read a tokenizer.json.

        Args:
            path: The file.
            content: Of the file, where that has been read; None: it is read.
            max_tokens: Truncate texts to this many tokens, special ones included; None: never.
            most_tokens: Refuse texts of more tokens than the model takes, without reading them to their end; None: the
                model takes any number.
            refuse_unknown: An unknown character or word is an error, not an id.
            truncation_side: Where texts are truncated: "right", their end, or "left", their beginning.
            lower_case: Texts are lower-cased first, as sentence-transformers does where it is told to.

        Raises:
            BundleError: The file cannot be read, or the package `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise BundleError(
                "texts need the package tokenizers, which is not installed: pip install 'tfm-export[text]'; "
                "run() takes token ids without it"
            ) from error
        known = f"a tokenizer that tokenizers {tokenizers.__version__} reads"
        with _refusing(lambda error: BundleError(f"{path} is not {known}: {error}")):
            self._tokenizer = tokenizers.Tokenizer.from_buffer(read_file(path) if content is None else content)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special: int = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.max_tokens, self._side = max_tokens, truncation_side
        self._most, self._reads = most_tokens, most_tokens if max_tokens is None else max_tokens
        if max_tokens is not None:
            if max_tokens <= self._special:
                raise BundleError(
                    f"{path} adds {self._special} special tokens, which leaves no room in {max_tokens} tokens"
                )
            self._tokenizer.enable_truncation(max_tokens, direction=truncation_side)
        self._lower_case = lower_case
        self._cutting: dict[tuple[Strategy, int | None, int], Any] = {}
        self._copying = threading.Lock()
        if truncation_side == "left" and max_tokens is not None:
            # What counts is the end, which is known only when all of the text has been read.
            self._reads = None
        # Not every kind of model has one.
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown_id = self.id_of(unknown) if unknown else None
        self._refused_id = self.unknown_id if refuse_unknown else None

    def encode(self, texts: list[str], control: Control | None = None) -> list[list[int]]:
        """Tokenize texts, or pairs of them, special tokens included.

        Args:
            texts: The texts.
            control: What may end it before its time.

        Raises:
            InputError: A text is none, has no tokens, more than the model takes, or cannot be tokenized; or a part of
                it is refused as unknown.
            RunCancelledError: The control's token was cancelled.
            RunTimeoutError: The control's time is up.
        """
        # not encode_batch: its pool of threads does not survive a fork
        return [row.ids for row in self.rows(texts, control)]

    def rows(self, items: list[Any], control: Control | None = None, *, keep: bool = False) -> list[Row]:
        """Tokenize texts, and pairs of texts, special tokens included.

        Args:
            items: Texts, or pairs of them.
            control: What may end it before its time.
            keep: Whether rows have their encodings.

        Raises:
            InputError: As `encode`.
            RunCancelledError: As `encode`.
            RunTimeoutError: As `encode`.
        """
        found = []
        for item in items:
            encoding = self.pair(*item, control=control) if is_pair(item) else self.encoding(item, control=control)
            found.append(row_of(encoding, keep=keep))
        return found

    def pair(
        self,
        first: str,
        second: str,
        *,
        strategy: Strategy = "longest_first",
        max_tokens: int | None = None,
        stride: int = 0,
        control: Control | None = None,
    ) -> Any:
        """Tokenize two texts that are read together into a `tokenizers.Encoding`, by the tokenizer's own template.

        Args:
            first: The text before the separator.
            second: The one behind it.
            strategy: Which is cut where both are too long together.
            max_tokens: Of both, special ones included; None: what texts are truncated to.
            stride: How many tokens each part of what is cut shares with the one before, in `overflowing`.
            control: What may end it before its time.

        Raises:
            InputError: As `encode`; or what may be cut is too short for it.
            RunCancelledError: As `encode`.
            RunTimeoutError: As `encode`.
        """
        texts = [text.lower() if self._lower_case else text for text in (first, second)]
        if control is not None:
            control.check()
        # Each way to cut has a tokenizer of its own: see there.
        tokenizer = self._cutting_by(strategy, max_tokens, stride)
        for text in texts:
            _check_unicode(text)
        with _refusing(lambda error: InputError(f"the pair {brief(first)}, {brief(second)} cannot be read: {error}")):
            encoding = tokenizer.encode(*(self._shortened(texts) if strategy == "longest_first" else texts))
        if control is not None:
            control.check()
        if self._refused_id in encoding.ids:
            raise InputError(f"the pair {brief(first)}, {brief(second)} has parts that are not in the vocabulary")
        if self._most is not None and len(encoding) > self._most:
            raise InputError(
                f"the pair {brief(first)}, {brief(second)} has more tokens than the {self._most} that this model takes "
                "at most; shorten it"
            )
        return encoding

    def _shortened(self, texts: list[str]) -> list[str]:
        """Shorten the texts of a pair to what the model reads of them, and some more.

        What tokenizers cuts off it keeps, in parts, and of two texts every part of one beside every part of the other:
        of two long ones more than memory holds.
        """
        if self.max_tokens is None:
            return texts
        enough = self.max_tokens + _MARGIN
        if all(_most_tokens(text) <= enough for text in texts):
            return texts
        if self._reads is not None and (found := self._with_one_beginning(texts, enough)) is not None:
            return found
        whole = [self._without_cutting.encode(text, add_special_tokens=False) for text in texts]
        # Of two that are too long the shorter loses a token less: which it is must stay so.
        short = 0 if len(whole[0]) <= len(whole[1]) else 1
        keep = [0, 0]
        keep[short] = min(len(whole[short]), enough)
        keep[1 - short] = max(enough, keep[short] + _MARGIN)
        return [self._part_of(text, one, count) for text, one, count in zip(texts, whole, keep, strict=True)]

    def _with_one_beginning(self, texts: list[str], enough: int) -> list[str] | None:
        """Shorten the one long text of a pair, without reading it to its end; None: there are two."""
        for place, other in ((0, texts[1]), (1, texts[0])):
            if _most_tokens(other) <= enough:
                beginnings = _beginnings(texts[place], _PER_TOKEN * enough)
                long_enough = (one for one in beginnings if self._count(self._tokenizer.encode(one)) >= enough)
                found = next(long_enough, texts[place])
                return [found, other] if place == 0 else [other, found]
        return None

    def _part_of(self, text: str, encoding: Any, count: int) -> str:
        """Give as much of a text as its first tokens are, or its last ones where its beginning is cut off."""
        if len(encoding) <= count:
            return text
        if self._side == "left":
            return text[encoding.offsets[-count][0] :]
        return text[: encoding.offsets[count - 1][1]]

    @property
    def json(self) -> str:
        """Text of the tokenizer.json, as it is without truncation."""
        return str(self._without_cutting.to_str())

    @cached_property
    def _without_cutting(self) -> Any:
        made = copy.deepcopy(self._tokenizer)
        made.no_truncation()
        return made

    def _cutting_by(self, strategy: Strategy, max_tokens: int | None, stride: int) -> Any:
        """Give a tokenizer that truncates in a way of its own: another thread may be in the first one."""
        limit = self.max_tokens if max_tokens is None else max_tokens
        key = (strategy, limit, stride)
        # What most calls want is there already.
        if limit is None or key == ("longest_first", self.max_tokens, 0):
            return self._tokenizer
        # Two threads that come at once must not copy it twice: a large vocabulary takes a second.
        with self._copying:
            if key not in self._cutting:
                made = copy.deepcopy(self._tokenizer)
                made.enable_truncation(limit, stride=stride, strategy=strategy, direction=self._side)
                self._cutting[key] = made
            return self._cutting[key]

    def encoding(self, text: str, *, special: bool = True, control: Control | None = None) -> Any:
        """Tokenize one text into a `tokenizers.Encoding`, which knows where in the text each token is.

        Args:
            text: The text.
            special: Whether special tokens are added, such as one that starts a text; not to what a chat template
                has written, which has its own.
            control: What may end it before its time.

        Raises:
            InputError: As `encode`.
            RunCancelledError: As `encode`.
            RunTimeoutError: As `encode`.
        """
        # Tokenizers takes more than texts.
        if not isinstance(text, str):
            raise InputError(f"a text must be a str, but is {brief(text)}")
        special = special and not isinstance(text, TemplatedText)
        text = text.lower() if self._lower_case else text
        with _refusing(lambda error: InputError(f"the text {brief(text)} {_why_refused(text, error)}")):
            encoding = self._encode(text, special, control)
        ids: list[int] = encoding.ids
        if not ids:
            raise InputError(f"the text {brief(text)} has no tokens; leave it out")
        # Offsets are those of the text as it was given, so that the message shows what was typed.
        if self._refused_id in ids:
            start, end = encoding.offsets[ids.index(self._refused_id)]
            raise InputError(
                f"{brief(text[start:end])} in the text {brief(text)} (at {start}) is not in the model's vocabulary; "
                "replace it"
            )
        return encoding

    def _encode(self, text: str, special: bool, control: Control | None) -> Any:
        """Tokenize as much of a text as the model reads, and some more: what lies behind does not change that.

        tokenizers neither stops nor lets another thread run before it has read all it is given, a second for a MB.
        """
        check = control.check if control is not None else lambda: None
        check()
        if self._reads is not None:
            enough = self._reads + _MARGIN
            for beginning in _beginnings(text, _PER_TOKEN * enough):
                encoding = self._tokenizer.encode(beginning, add_special_tokens=special)
                check()
                # Too few tokens to know that what follows changes nothing: a longer beginning is tried.
                if self._count(encoding) < enough:
                    continue
                if self._most is not None:
                    raise InputError(
                        f"the text {brief(text)} has more tokens than the {self._most} that this model takes at most; "
                        "shorten it"
                    )
                return encoding
        # A text that is short, or whose every beginning had too few tokens.
        encoding = self._tokenizer.encode(text, add_special_tokens=special)
        check()
        return encoding

    def _count(self, encoding: Any) -> int:
        """Count a text's tokens, those that truncation took away too; each part of these has special ones again."""
        rest = sum(len(part) - self._special for part in encoding.overflowing)
        return len(encoding) + rest

    @cached_property
    def byte_tokens(self) -> frozenset[int]:
        """Ids that stand for one byte each: a text can be told only when a run of them has ended."""
        from ..generation.text import byte_token_ids

        return byte_token_ids(self._tokenizer.get_vocab())

    @cached_property
    def continuing_prefix(self) -> str | None:
        """What marks the later parts of a word, as "##" does; None: nothing."""
        return getattr(self._tokenizer.model, "continuing_subword_prefix", None) or None

    def text_of(self, tokens: list[str]) -> str:
        """Write tokens, not ids, as the text that they are."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    def id_of(self, token: str) -> int | None:
        """Look a token's id up; None: there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, rows: list[list[int]], *, skip_special: bool = True, warns: bool = True) -> list[str]:
        """Turn ids into texts, special tokens left out unless `skip_special` is False.

        An id that the tokenizer lacks, as where a model's vocabulary was rounded up, has no text: a `TextWarning` names
        it, unless `warns` is False.

        Raises:
            BundleError: The tokenizer cannot tell them.
        """
        with _refusing(lambda error: BundleError(f"the tokenizer cannot turn ids into a text: {error}")):
            texts = [self._tokenizer.decode(row, skip_special_tokens=skip_special) for row in rows]
            lost = sorted({id for row in rows for id in row if self._tokenizer.id_to_token(id) is None})
        if lost and warns:
            more = f" and {len(lost) - 3} others" if len(lost) > 3 else ""
            warn(
                f"the tokenizer has no text for {', '.join(map(str, lost[:3]))}{more}, and so none of it is in the text"
            )
        return texts


@contextlib.contextmanager
def _refusing(make: Callable[[BaseException], TfmError]) -> Iterator[None]:
    """Raise an error of ours in the place of what tokenizers raises, which has no narrower class."""
    try:
        yield
    except TfmError:
        raise
    except Exception as error:
        raise make(error) from error
    except BaseException as error:
        # Of Rust code that gave up; pyo3 has it in no module.
        if type(error).__name__ != "PanicException":
            raise
        raise make(error) from error


def _beginnings(text: str, size: int) -> Iterator[str]:
    """Give longer and longer beginnings of a text, of `size` characters at first, but not all of it.

    Each ends where a word does, if one does near there: tokens end there too.
    """
    while size < len(text):
        ends = (place for place in range(size, size - _LONGEST_WORD, -1) if text[place].isspace())
        end = next((place for place in ends if not text[place - 1].isspace()), size)
        yield text[:end]
        size *= 4


def _most_tokens(text: str) -> int:
    """How many tokens a text has at most: a byte is one, but where normalizing writes a letter out."""
    return len(text.encode()) * (1 if text.isascii() else 6)


def _check_unicode(text: str) -> None:
    with _refusing(lambda error: InputError(f"the text {brief(text)} {_why_refused(text, error)}")):
        text.encode()


def _why_refused(text: str, error: BaseException) -> str:
    """Say why tokenizers refused a text."""
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        character = text[wrong.start]
        return f"is not valid Unicode: {character!r} at {wrong.start} is half of a character; decode its bytes again"
    return f"cannot be tokenized: {error}"
