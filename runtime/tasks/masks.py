"""Tokens for the masks of a text, as Hugging Face's fill-mask pipeline finds them.

Shapes: S sequence, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from tfm.bundle import MASK_FILES, Companions
from tfm.errors import InputError

from ..inputs.checks import Array
from ..inputs.row import Row
from ..inputs.tokenizer import Tokenizer
from .base import Task, best, scores_of

_MASKS = ("[MASK]", "<mask>")
"""Of BERT and of RoBERTa, where a tokenizer's companions do not name it."""


class Fill(TypedDict):
    """A token for a mask.

    Its probability, id and text; the whole text with it in place; and which token of the row, counted from 0 with the
    special ones, the mask is.
    """

    score: float
    token: int
    token_str: str
    sequence: str
    index: int


def read_special(companions: Companions, key: str) -> str | None:
    """Read a token, as that for masked ones, "mask_token", from the tokenizer's companions; None: they do not say."""
    for name in MASK_FILES:
        value = (companions.json(name) or {}).get(key)
        if value is not None and value.value is not None:
            # A token is written as its text, or as an object that has the text as its content.
            return (value["content"] if isinstance(value.value, dict) else value).text()
    return None


def find_mask(companions: Companions, tokenizer: Tokenizer) -> tuple[str, int]:
    """Find the token that stands for a masked one, and its id."""
    named = read_special(companions, "mask_token")
    names = _MASKS if named is None else (named,)
    for name in names:
        if (mask_id := tokenizer.id_of(name)) is not None:
            return name, mask_id
    raise InputError(
        f"{companions.manifest.folder}: its tokenizer has no mask, which was looked for as {' or '.join(names)}"
    )


def mask_filling(tokenizer: Tokenizer, mask: str, mask_id: int, top_k: int | None) -> Task[list[Fill]]:
    """Make the task of finding tokens for masks."""

    def check(place: int, row: Row) -> None:
        if mask_id not in row.ids:
            raise InputError(
                f"inputs[{place}] has no {mask} among its {len(row)} tokens; write one where one is sought"
            )

    def finish(item: Any, row: Row, values: Mapping[str, Array]) -> list[Fill]:
        logits_SV = values["logits"]
        masks = [index for index, token in enumerate(row.ids) if token == mask_id]
        fills: list[Fill] = []
        for index in masks:
            scores_V = scores_of(logits_SV[index], "softmax")
            for token in best(scores_V, top_k):
                # Where there are other masks, they are shown, and so other special tokens too.
                filled = [*row.ids[:index], token, *row.ids[index + 1 :]]
                (sequence,) = tokenizer.decode([filled], skip_special=len(masks) == 1)
                (text,) = tokenizer.decode([[token]], skip_special=False)
                score = float(scores_V[token])
                fills.append({"score": score, "token": token, "token_str": text, "sequence": sequence, "index": index})
        return fills

    return Task(("logits",), finish, check)
