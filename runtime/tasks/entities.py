"""Labels of the tokens of a text, alone or put together, as Hugging Face's token-classification pipeline has them.

Shapes: S sequence, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from tfm.bundle import Manifest, TensorSpec, brief
from tfm.errors import InputError

from ..inputs.checks import Array, nearest
from ..inputs.row import Row
from ..inputs.tokenizer import Tokenizer
from .base import Squash, Task, read_labels, scores_of

Aggregation = Literal["none", "simple", "first", "average", "max"]
"""How tokens become entities: each its own; neighbors of one label; and so, but by whole words, whose label is that of
their first token, of their tokens' mean scores, or of the token that is surest."""

_KNOWN: tuple[Aggregation, ...] = ("none", "simple", "first", "average", "max")


class Entity(TypedDict):
    """A labeled token: its label and probability, its place in the row, itself, and where in the text it is."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class EntityGroup(TypedDict):
    """Tokens of one label: that without "B-" or "I-", their mean probability, themselves, and where they are."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class _Token:
    """A token, or a word of several: its scores and its label, the likeliest but for a word, itself, and its place."""

    scores_L: npt.NDArray[np.float64]
    word: str
    start: int
    end: int
    index: int
    continues: bool
    """Whether it is a later part of the word before it."""

    @property
    def place(self) -> int:
        return int(self.scores_L.argmax())

    @property
    def score(self) -> float:
        return float(self.scores_L[self.place])


def check_aggregation(value: Any) -> Aggregation:
    """Return how tokens are put together.

    Raises:
        InputError: It is no way that is known.
    """
    for known in _KNOWN:
        if value == known:
            return known
    raise InputError(f"there is no aggregation {brief(value)}; {nearest(value, _KNOWN)}")


def token_labeling(
    manifest: Manifest,
    logits: TensorSpec,
    tokenizer: Tokenizer,
    ignore_labels: Sequence[str],
    *,
    aggregation: Aggregation = "none",
    unknown_id: int | None = None,
) -> Task[list[Any]]:
    """Make the task of labeling the tokens of texts; `unknown_id` stands for what is not in the vocabulary."""
    labels = read_labels(manifest, int(logits.shape[-1]))
    # Of a single label softmax would make 1, whatever the logit.
    squash: Squash = "sigmoid" if len(labels) == 1 else "softmax"

    def finish(item: Any, row: Row, values: Mapping[str, Array]) -> list[Any]:
        # Without the padding of the batch.
        scores_SL = scores_of(values[logits.name][: len(row)], squash)
        tokens = _tokens(item, row, scores_SL, tokenizer.continuing_prefix is not None, unknown_id)
        # Left out by the label of each token, before anything is put together.
        if aggregation == "none":
            return [_entity(token, labels) for token in tokens if labels[token.place] not in ignore_labels]
        if aggregation != "simple":
            tokens = [_word(parts, aggregation, tokenizer) for parts in _words(tokens)]
        # And here after it: a group has its label without "B-" or "I-".
        groups = [_group(part, labels, tokenizer) for part in _runs(tokens, labels)]
        return [group for group in groups if group["entity_group"] not in ignore_labels]

    return Task((logits.name,), finish, _refuse_ids, keep=True)


def _refuse_ids(place: int, row: Row) -> None:
    if row.encoding is None:
        raise InputError("classify_tokens takes texts, not rows of token ids: run() does, and gives logits")
    # Of two texts nobody could say which of them a place is in.
    if row.types is not None:
        raise InputError(f"inputs[{place}] is a pair, and classify_tokens takes single texts")


def _tokens(
    text: str, row: Row, scores_SL: npt.NDArray[np.float64], by_prefix: bool, unknown_id: int | None
) -> list[_Token]:
    """List the tokens of a text but the special ones."""
    encoding, found = row.encoding, []
    for index, special in enumerate(encoding.special_tokens_mask):
        if special:
            continue
        start, end = encoding.offsets[index]
        word = encoding.tokens[index]
        # "##ing" is longer than what it stands for. Where parts of words are not marked, there is a space
        # before the first of them; of both neither is right for every text, and both are the pipeline's.
        continues = len(word) != end - start if by_prefix else start > 0 and " " not in text[start - 1 : start + 1]
        # The text says more than "[UNK]".
        if row.ids[index] == unknown_id:
            word, continues = text[start:end], False
        found.append(_Token(scores_SL[index], word, start, end, index, continues))
    return found


def _entity(token: _Token, labels: Sequence[str]) -> Entity:
    return {
        "entity": labels[token.place],
        "score": token.score,
        "index": token.index,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def _words(tokens: Sequence[_Token]) -> list[list[_Token]]:
    """Put the parts of each word together."""
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(parts: Sequence[_Token], aggregation: Aggregation, tokenizer: Tokenizer) -> _Token:
    """Make one of the parts of a word."""
    # "first", unless another is asked for.
    scores_L = parts[0].scores_L
    if aggregation == "max":
        scores_L = max(parts, key=lambda part: part.score).scores_L
    elif aggregation == "average":
        scores_L = np.mean([part.scores_L for part in parts], axis=0)
    word = tokenizer.text_of([part.word for part in parts])
    return _Token(scores_L, word, parts[0].start, parts[-1].end, parts[0].index, continues=False)


def _runs(tokens: Sequence[_Token], labels: Sequence[str]) -> list[list[_Token]]:
    """Put neighbors of one label together; one that is marked as a beginning, "B-", begins another."""
    runs: list[list[_Token]] = []
    for token in tokens:
        # Two neighbors of one kind are two entities where the second is marked as a beginning.
        begins, name = _split(labels[token.place])
        if runs and not begins and name == _split(labels[runs[-1][-1].place])[1]:
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs


def _split(label: str) -> tuple[bool, str]:
    """Tell whether a label marks a beginning, and its name; "I-" marks the inside, as no mark does."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _group(run: Sequence[_Token], labels: Sequence[str], tokenizer: Tokenizer) -> EntityGroup:
    return {
        "entity_group": labels[run[0].place].split("-", 1)[-1],
        "score": float(np.mean([token.score for token in run])),
        "word": tokenizer.text_of([token.word for token in run]),
        "start": run[0].start,
        "end": run[-1].end,
    }
