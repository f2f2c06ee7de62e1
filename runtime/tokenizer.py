"""A bundle's tokenizer.json: from texts to ids and back."""

from functools import cached_property
from pathlib import Path
from typing import Any

from tfm.errors import BundleError, InputError

from .messages import brief


class Tokenizer:
    """Wraps `tokenizers.Tokenizer`. What its file says of padding and truncation is overridden.

    Attributes:
        unknown_id: Stands for what is not in the vocabulary; None: nothing does.
    """

    def __init__(self, path: Path, *, max_tokens: int | None = None, refuse_unknown: bool = False) -> None:
        """Read a tokenizer.json.

        Args:
            path: The file.
            max_tokens: Truncate texts to this many tokens, special ones included; None: never.
            refuse_unknown: An unknown character or word is an error, not an id.

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
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower class
            raise BundleError(
                f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads: {error}"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_tokens is not None:
            special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            if max_tokens <= special:
                raise BundleError(f"{path} adds {special} special tokens, which leaves no room in {max_tokens} tokens")
            self._tokenizer.enable_truncation(max_tokens)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown_id = self.id_of(unknown) if unknown else None
        self._refused_id = self.unknown_id if refuse_unknown else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokenize texts, special tokens included.

        Raises:
            InputError: A text is none, has no tokens or cannot be tokenized, or a part of it is refused as unknown.
        """
        # not encode_batch: its pool of threads does not survive a fork
        return [self.encoding(text).ids for text in texts]

    def encoding(self, text: str, *, special: bool = True) -> Any:
        """Tokenize one text into a `tokenizers.Encoding`, which knows where in the text each token is.

        Args:
            text: The text.
            special: Whether special tokens are added, such as one that starts a text.

        Raises:
            InputError: As `encode`.
        """
        if not isinstance(text, str):  # tokenizers takes more than texts
            raise InputError(f"a text must be a str, but is {brief(text)}")
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:  # tokenizers raises no narrower class
            raise InputError(f"the text {brief(text)} {_why_refused(text, error)}") from error
        ids: list[int] = encoding.ids
        if not ids:
            raise InputError(f"the text {brief(text)} has no tokens; leave it out")
        if self._refused_id in ids:
            start, end = encoding.offsets[ids.index(self._refused_id)]
            raise InputError(
                f"{brief(text[start:end])} in the text {brief(text)} (at {start}) is not in the model's vocabulary; "
                "replace it"
            )
        return encoding

    @cached_property
    def byte_tokens(self) -> frozenset[int]:
        """Ids that stand for one byte each: a text can be told only when a run of them has ended."""
        from .generation.text import byte_token_ids

        return byte_token_ids(self._tokenizer.get_vocab())

    def id_of(self, token: str) -> int | None:
        """Look a token's id up; None: there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, rows: list[list[int]], *, skip_special: bool = True) -> list[str]:
        """Turn ids into texts, special tokens left out unless `skip_special` is False."""
        return [self._tokenizer.decode(row, skip_special_tokens=skip_special) for row in rows]


def _why_refused(text: str, error: Exception) -> str:
    """Say why tokenizers refused a text."""
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        character = text[wrong.start]
        return f"is not valid Unicode: {character!r} at {wrong.start} is half of a character; decode its bytes again"
    return f"cannot be tokenized: {error}"
