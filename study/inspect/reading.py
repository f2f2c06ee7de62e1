"""What goes into a bundle's graphs: one text as token ids, and how to show each token."""

from collections.abc import Sequence

import numpy as np

from tfm.bundle import TOKENIZER, Manifest, Signature, read_proved
from tfm.errors import InputError
from tfm.runtime import Array, Tokenizer, check_rows, from_nothing, length_limit

MOST_TOKENS = 512
"""Tokens of a text that is looked into: the maps of all heads together take memory by its square."""

_TEXT = ("input_ids", "attention_mask", "token_type_ids")


class Reader:
    """Turns a text into the ids that a bundle reads, and ids into what is shown of them."""

    def __init__(self, manifest: Manifest) -> None:
        """Read the bundle's tokenizer, where it has one.

        Raises:
            InputError: The bundle reads no token ids.
            BundleError: The tokenizer is altered or cannot be read, or needs a package that is missing.
        """
        self._manifest = manifest
        self._signature = manifest.signature["encoder" if manifest.kind == "encoder-decoder" else "model"]
        names = [spec.name for spec in self._signature.inputs]
        if "input_ids" not in names or (manifest.kind in ("encoder", "module") and set(names) - set(_TEXT)):
            raise InputError(
                f"{manifest.folder} takes {', '.join(names)}, and a look inside is one at how a text is read: "
                "give a bundle that takes input_ids"
            )
        self._words = manifest.generation is not None and manifest.generation.split_on_whitespace
        self._tokenizer: Tokenizer | None = None
        if TOKENIZER in manifest.files:
            content = read_proved(manifest, TOKENIZER)
            self._tokenizer = Tokenizer(manifest.folder / TOKENIZER, content=content, refuse_unknown=self._words)

    def read(self, text: str | Sequence[int]) -> list[int]:
        """Give the ids of a text, or check those that are given.

        Raises:
            InputError: The text is empty, too long or cannot be tokenized; it is more than one word where the bundle
                reads words; the bundle has no tokenizer; an id is out of range.
        """
        row: Sequence[int] = self._encode(text) if isinstance(text, str) else text
        # Refused, not cut: what is shown is to be of the whole text.
        limits = [self._manifest.max_text_tokens, length_limit(self._signature), MOST_TOKENS]
        most = min(limit for limit in limits if limit is not None)
        if len(row) > most:
            whose = "a look inside takes" if most == MOST_TOKENS else f"{self._manifest.folder} reads"
            raise InputError(f"the text has {len(row)} tokens, but {whose} at most {most}; shorten it")
        return check_rows([row], self._signature)[0]

    def _encode(self, text: str) -> list[int]:
        folder = self._manifest.folder
        if not text.strip():
            raise InputError("the text is empty; give one to look at")
        if self._tokenizer is None:
            raise InputError(
                f"{folder} has no {TOKENIZER}, so it takes no texts; "
                "give token ids, to tfm.study.inspect.inspect(bundle, ids)"
            )
        if self._words:
            text, *more = text.split()
            if more:
                raise InputError(f"{folder} reads single words; give one of {' '.join([text, *more])!r}")
        return self._tokenizer.encode([text])[0]

    def show(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as text by itself; what cannot be seen by a sign for it; its number where nothing tells it."""
        if self._tokenizer is None:
            return tuple(map(str, ids))
        # Each token by itself, special ones too: labels stand beside rows and columns.
        return tuple(_visible(self._tokenizer.decode([[one]], skip_special=False, warns=False)[0]) for one in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; the numbers where there is no tokenizer."""
        return (
            " ".join(self.show(ids)) if self._tokenizer is None else self._tokenizer.decode([list(ids)], warns=False)[0]
        )


def feeds_of(signature: Signature, ids: Sequence[int]) -> dict[str, Array]:
    """What a graph takes for one row of ids, read at once: no padding, one segment, and empty caches."""
    ids_BS = np.array([ids], np.int64)
    named = {"input_ids": ids_BS, "attention_mask": np.ones_like(ids_BS), "token_type_ids": np.zeros_like(ids_BS)}
    feeds = {spec.name: named[spec.name] for spec in signature.inputs if spec.name in named}
    if any("past_sequence" in spec.shape for spec in signature.inputs):
        # Nobody asks for the logits but the last.
        feeds |= from_nothing(signature, *ids_BS.shape) | {"num_logits_to_keep": np.array(1)}
    return feeds


def _visible(text: str) -> str:
    signs = {"\n": "⏎", "\t": "⇥", " ": "␣"}
    return text.strip() or "".join(signs.get(character, character) for character in text) or "·"
