"""Texts, pairs of texts and rows of ids as the inputs of an encoder's graph.

Shapes: B batch, S sequence.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tfm.bundle import Signature
from tfm.errors import InputError

from ..control import Control
from .batches import check_rows, pad_rows, plan
from .checks import Array
from .row import Row, is_pair
from .tokenizer import Tokenizer

TYPES = "token_type_ids"


@dataclass(frozen=True)
class Made:
    """An input that knows itself how it is read.

    Attributes:
        row: Makes its row.
        about: What the caller knows it by.
    """

    row: Callable[[Control], Row]
    about: Any = None


class Reader(Protocol):
    """How the inputs of a task become what its graph takes."""

    def rows(self, items: Sequence[Any], control: Control, *, keep: bool) -> list[Any]:
        """Turn inputs into rows, checked; with what says where in a text its tokens are, if that is kept."""
        ...

    def plan(self, rows: Sequence[Any], batch_tokens: int | None) -> list[list[int]]:
        """Divide rows into batches, each a list of their places; None: each row alone."""
        ...

    def feeds(self, rows: Sequence[Any]) -> dict[str, Array]:
        """Make the inputs of the graph of the rows of a batch."""
        ...


class TextReader:
    """Reads texts, pairs and rows of ids."""

    def __init__(self, signature: Signature, tokenizer: Callable[[], Tokenizer], *, pad: int, has_types: bool) -> None:
        """Make one.

        Args:
            signature: Of the graph.
            tokenizer: Gives the bundle's, which is read when the first text comes.
            pad: Id that fills up shorter rows.
            has_types: Whether the model is given which text of a pair a token is of, as its library does.
        """
        self._signature, self._tokenizer, self._pad = signature, tokenizer, pad
        names = {spec.name for spec in signature.inputs}
        self._masked, self._typed, self._has_types = "attention_mask" in names, TYPES in names, has_types

    def rows(self, items: Sequence[Any], control: Control, *, keep: bool) -> list[Row]:
        """Tokenize texts and pairs, and check rows of ids; a `Made` is asked for its row."""
        # A pair of texts may stand beside texts, but ids beside texts are a mistake.
        texts = sum(isinstance(item, str) or is_pair(item) for item in items)
        if 0 < texts < len(items):
            raise InputError("inputs mix texts with token ids; pass all as one or the other")
        rows = [self._row(item, control, keep) for item in items]
        # All at once, so that an error names the place among all of them.
        checked = check_rows([row.ids for row in rows], self._signature, [row.place for row in rows])
        return [dataclasses.replace(row, ids=ids) for row, ids in zip(rows, checked, strict=True)]

    def _row(self, item: Any, control: Control, keep: bool) -> Row:
        # Tokenizing may take longer than the model, so the time is looked at here too.
        control.check()
        # It was checked when it was made.
        if isinstance(item, Made):
            return item.row(control)
        if isinstance(item, str) or is_pair(item):
            return self._tokenizer().rows([item], control, keep=keep)[0]
        return Row(ids=item)

    def plan(self, rows: Sequence[Row], batch_tokens: int | None) -> list[list[int]]:
        """Put rows of similar length together."""
        return plan([len(row) for row in rows], batch_tokens)

    def feeds(self, rows: Sequence[Row]) -> dict[str, Array]:
        """Pad rows on the right."""
        ids_BS, mask_BS = pad_rows([row.ids for row in rows], self._pad)
        feeds = {"input_ids": ids_BS} | ({"attention_mask": mask_BS} if self._masked else {})
        if self._typed:
            types_BS = np.zeros_like(ids_BS)
            # Padding is of the first text, as transformers pads.
            for b, row in enumerate(rows):
                if row.types is not None and self._has_types:
                    types_BS[b, : len(row)] = row.types
            feeds[TYPES] = types_BS
        return feeds
