"""What an encoder's logits say: labels of a text, labels of its tokens, or tokens for its masks.

Results are those of Hugging Face's pipelines. Shapes: S sequence, L labels, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from tfm.bundle import CONFIG, MANIFEST, MASK_FILES, CheckedJson, Companions, Manifest, TensorSpec
from tfm.errors import InputError

from .inputs.checks import Array
from .inputs.tokenizer import Tokenizer

R = TypeVar("R")
Squash = Literal["softmax", "sigmoid", "none"]

_MASKS = ("[MASK]", "<mask>")
"""Of BERT and of RoBERTa, where a tokenizer's companions do not name it."""


@dataclass(frozen=True)
class Task(Generic[R]):
    """What is made of an encoder's output.

    Attributes:
        output: Which one.
        finish: Makes a result of an input, its row of ids, and its share of the output, padding included.
        check: Refuses a row, given its number too, before any is run.
    """

    output: str
    finish: Callable[[Any, list[int], Array], R]
    check: Callable[[int, list[int]], None] = lambda place, row: None


class Label(TypedDict):
    """A label of a text."""

    label: str
    score: float


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


class Entity(TypedDict):
    """A labeled token: its label and probability, its place in the row, itself, and where in the text it is."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


def read_labels(manifest: Manifest, count: int) -> list[str]:
    """Read the names of `count` labels from a bundle's configuration; LABEL_0 and so on where it names none."""
    labels = manifest.config.get("labels")
    if labels is None:
        return [f"LABEL_{index}" for index in range(count)]
    value = CheckedJson(manifest.folder / MANIFEST, labels, "config.labels")
    names = [item.text() for item in value.items()]
    if len(names) != count:
        raise value.error(f"a list of {count} labels, as many as there are logits")
    return names


def read_squash(companions: Companions, count: int) -> Squash:
    """Tell what makes scores of the logits of `count` labels of a text.

    As in Hugging Face's pipeline, by problem_type in the bundle's config.json: nothing for a regression, the sigmoid of
    each for several labels at once or for a single label, softmax else.
    """
    config = companions.json(CONFIG)
    problem = None if config is None else config.get("problem_type")
    if problem is not None and problem.value == "regression":
        return "none"
    several = problem is not None and problem.value == "multi_label_classification"
    return "sigmoid" if several or count == 1 else "softmax"


def read_mask_token(companions: Companions) -> str | None:
    """Read which token stands for a masked one from the tokenizer's companions; None: they do not say."""
    for name in MASK_FILES:
        value = (companions.json(name) or {}).get("mask_token")
        if value is not None and value.value is not None:
            # A token is written as its text, or as an object that has the text as its content.
            return (value["content"] if isinstance(value.value, dict) else value).text()
    return None


def scores_of(logits: Array, squash: Squash) -> npt.NDArray[np.float64]:
    """Make scores of logits, over the last axis."""
    z = logits.astype(np.float64)
    if squash == "none":
        return z
    if squash == "sigmoid":
        # 1 / (1 + e^-z), in a form in which no power overflows.
        return np.exp(-np.logaddexp(0.0, -z))
    # Less the greatest, so that no power overflows.
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def best(scores: npt.NDArray[np.float64], top_k: int | None) -> list[int]:
    """List the places of the `top_k` greatest of scores (L,), the greatest first, and of equal ones the first."""
    count = len(scores) if top_k is None else min(top_k, len(scores))
    # A whole sort of a vocabulary takes longer than a small model's run; what ties with the last one is let in.
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(~(scores < least))  # not >=: NaN is kept, and comes last
    chosen: list[int] = places[np.argsort(-scores[places], kind="stable")][:count].tolist()
    return chosen


def labeling(manifest: Manifest, logits: TensorSpec, squash: Squash, top_k: int | None) -> Task[list[Label]]:
    """Make the task of labeling texts."""
    labels = read_labels(manifest, int(logits.shape[-1]))

    def finish(item: Any, row: list[int], logits_L: Array) -> list[Label]:
        scores_L = scores_of(logits_L, squash)
        return [{"label": labels[place], "score": float(scores_L[place])} for place in best(scores_L, top_k)]

    return Task(logits.name, finish)


def find_mask(companions: Companions, tokenizer: Tokenizer) -> tuple[str, int]:
    """Find the token that stands for a masked one, and its id."""
    named = read_mask_token(companions)
    names = _MASKS if named is None else (named,)
    for name in names:
        if (mask_id := tokenizer.id_of(name)) is not None:
            return name, mask_id
    raise InputError(
        f"{companions.manifest.folder}: its tokenizer has no mask, which was looked for as {' or '.join(names)}"
    )


def mask_filling(tokenizer: Tokenizer, mask: str, mask_id: int, top_k: int | None) -> Task[list[Fill]]:
    """Make the task of finding tokens for masks."""

    def check(place: int, row: list[int]) -> None:
        if mask_id not in row:
            raise InputError(
                f"inputs[{place}] has no {mask} among its {len(row)} tokens; write one where one is sought"
            )

    def finish(item: Any, row: list[int], logits_SV: Array) -> list[Fill]:
        masks = [index for index, token in enumerate(row) if token == mask_id]
        fills: list[Fill] = []
        for index in masks:
            scores_V = scores_of(logits_SV[index], "softmax")
            for token in best(scores_V, top_k):
                # Where there are other masks, they are shown, and so other special tokens too.
                filled = [*row[:index], token, *row[index + 1 :]]
                (sequence,) = tokenizer.decode([filled], skip_special=len(masks) == 1)
                (text,) = tokenizer.decode([[token]], skip_special=False)
                score = float(scores_V[token])
                fills.append({"score": score, "token": token, "token_str": text, "sequence": sequence, "index": index})
        return fills

    return Task("logits", finish, check)


def token_labeling(
    manifest: Manifest, logits: TensorSpec, tokenizer: Tokenizer, ignore_labels: Sequence[str]
) -> Task[list[Entity]]:
    """Make the task of labeling the tokens of texts."""
    labels = read_labels(manifest, int(logits.shape[-1]))
    # Of a single label softmax would make 1, whatever the logit.
    squash: Squash = "sigmoid" if len(labels) == 1 else "softmax"

    def finish(item: Any, row: list[int], logits_SL: Array) -> list[Entity]:
        if not isinstance(item, str):
            raise InputError("classify_tokens takes texts, not rows of token ids: run() does, and gives logits")
        encoding = tokenizer.encoding(item)
        # Without the padding of the batch.
        scores_SL = scores_of(logits_SL[: len(row)], squash)
        entities: list[Entity] = []
        for index, special in enumerate(encoding.special_tokens_mask):
            place = int(scores_SL[index].argmax())
            if special or labels[place] in ignore_labels:
                continue
            start, end = encoding.offsets[index]
            # As the pipeline does it: of an unknown token the text says more than "[UNK]".
            word = item[start:end] if row[index] == tokenizer.unknown_id else encoding.tokens[index]
            score = float(scores_SL[index, place])
            entities.append(
                {"entity": labels[place], "score": score, "index": index, "word": word, "start": start, "end": end}
            )
        return entities

    return Task(logits.name, finish)
