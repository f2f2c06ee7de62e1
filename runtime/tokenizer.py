"""A bundle's tokenizer.json: from texts to ids and back."""

from pathlib import Path
from typing import TYPE_CHECKING

from tfm.errors import BundleError, InputError

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Wraps `tokenizers.Tokenizer`. What its file says of padding and truncation is overridden."""

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
            raise BundleError(f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_tokens is not None:
            special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            if max_tokens <= special:
                raise BundleError(f"{path} adds {special} special tokens, which leaves no room in {max_tokens} tokens")
            self._tokenizer.enable_truncation(max_tokens)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown_id = self._tokenizer.token_to_id(unknown) if refuse_unknown and unknown else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokenize texts, special tokens included.

        Raises:
            InputError: A text has no tokens or cannot be tokenized, or one of its characters or words is refused as unknown.
        """
        try:
            encodings = self._tokenizer.encode_batch(texts)
        except Exception as error:  # tokenizers raises no narrower class
            raise InputError(f"a text cannot be tokenized: {error}") from error
        for text, encoding in zip(texts, encodings, strict=True):
            if self._unknown_id is not None and self._unknown_id in encoding.ids:
                self._refuse_unknown(text, encoding)
            if not encoding.ids:
                raise InputError(f"the text {text!r} has no tokens; leave it out")
        return [encoding.ids for encoding in encodings]

    def _refuse_unknown(self, text: str, encoding: "tokenizers.Encoding") -> None:
        start, end = encoding.offsets[encoding.ids.index(self._unknown_id)]
        raise InputError(
            f"{text[start:end]!r} in the text {text!r} (at {start}) is not in the model's vocabulary; remove or replace it"
        )

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Turn ids into texts, special tokens left out."""
        return [self._tokenizer.decode(row, skip_special_tokens=True) for row in rows]
