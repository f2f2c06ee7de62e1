"""What an encoder's logits say: labels of a text, labels of its tokens, or tokens for its masks.

Results are those of Hugging Face's pipelines. Shapes: S sequence, L labels, V vocabulary.
"""

import json
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from tfm.errors import BundleError

from .checked_json import CheckedJson
from .checks import Array
from .manifest import Manifest, check_digests

Squash = Literal["softmax", "sigmoid", "none"]


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
    """A labelled token: its label and probability, its place in the row, itself, and where in the text it is."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


def read_labels(manifest: Manifest, count: int) -> list[str]:
    """Read the names of `count` labels from a bundle's configuration; LABEL_0 and so on where it names none.

    Raises:
        BundleError: It names others.
    """
    labels = manifest.config.get("labels")
    if labels is None:
        return [f"LABEL_{index}" for index in range(count)]
    value = CheckedJson(manifest.folder / "manifest.json", labels, "config.labels")
    names = [item.text() for item in value.items()]
    if len(names) != count:
        raise value.error(f"a list of {count} labels, as many as there are logits")
    return names


def read_squash(manifest: Manifest, count: int) -> Squash:
    """Tell what makes scores of the logits of `count` labels of a text.

    As in Hugging Face's pipeline, by problem_type in the bundle's config.json: nothing for a regression, the sigmoid of
    each for several labels at once or for a single label, softmax else.

    Raises:
        BundleError: The file is altered or malformed.
    """
    config = _companion(manifest, "config.json")
    problem = None if config is None else config.get("problem_type")
    if problem is not None and problem.value == "regression":
        return "none"
    several = problem is not None and problem.value == "multi_label_classification"
    return "sigmoid" if several or count == 1 else "softmax"


def read_mask_token(manifest: Manifest) -> str | None:
    """Read which token stands for a masked one from the tokenizer's companions; None: they do not say.

    Raises:
        BundleError: A file is altered or malformed.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = (_companion(manifest, name) or {}).get("mask_token")
        if value is not None and value.value is not None:
            return (value["content"] if isinstance(value.value, dict) else value).text()
    return None


def scores_of(logits: Array, squash: Squash) -> npt.NDArray[np.float64]:
    """Make scores of logits, over the last axis."""
    z = logits.astype(np.float64)
    if squash == "none":
        return z
    if squash == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -z))
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def best(scores: npt.NDArray[np.float64], top_k: int | None) -> list[int]:
    """List the places of the `top_k` greatest of scores (L,), the greatest first; of equal ones the first comes first."""
    count = len(scores) if top_k is None else min(top_k, len(scores))
    # A whole sort of a vocabulary takes longer than a small model's run; what ties with the last one is let in.
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(~(scores < least))  # not >=: NaN is kept, and comes last
    chosen: list[int] = places[np.argsort(-scores[places], kind="stable")][:count].tolist()
    return chosen


def _companion(manifest: Manifest, name: str) -> dict[str, CheckedJson] | None:
    """Read a bundle's JSON file; None: it has none of that name."""
    if name not in manifest.files:
        return None
    check_digests(manifest, [name])
    path = manifest.folder / name
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}; export the bundle again") from error
    return CheckedJson(path, values).fields()
