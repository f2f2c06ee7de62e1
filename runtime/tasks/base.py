"""What every task shares: its output and what is made of it, names of labels, and scores.

Shapes: S sequence, L labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tfm.bundle import CONFIG, MANIFEST, CheckedJson, Companions, Manifest

from ..inputs.checks import Array
from ..inputs.row import Row

R = TypeVar("R")
Squash = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Task(Generic[R]):
    """What is made of an encoder's outputs.

    Attributes:
        outputs: Which ones.
        finish: Makes a result of an input, its row, and its share of each output, padding included.
        check: Refuses a row, given its number too, before any is run.
        keep: Whether `finish` needs to know where in the text each token is: `Row.encoding`.
    """

    outputs: tuple[str, ...]
    finish: Callable[[Any, Row, Mapping[str, Array]], R]
    check: Callable[[int, Row], None] = lambda place, row: None
    keep: bool = False


def kept(task: Task[R]) -> Task[tuple[Any, R]]:
    """Make a task that gives its result beside what the caller knows the input by, which is a `Made`."""

    def finish(item: Any, row: Row, values: Mapping[str, Array]) -> tuple[Any, R]:
        return item.about, task.finish(item, row, values)

    return Task(task.outputs, finish, task.check, task.keep)


def read_labels(manifest: Manifest, count: int) -> list[str]:
    """Read the names of `count` labels from a bundle's configuration; LABEL_0 and so on where it names none.

    They are `labels` of a native model, and `id2label` of one that was read by transformers.
    """
    top = CheckedJson(manifest.folder / MANIFEST, dict(manifest.config), "config")
    named = manifest.config.get("labels")
    if named is None and manifest.config.get("id2label") is not None:
        return _by_number(top["id2label"], count)
    if named is None:
        return [f"LABEL_{index}" for index in range(count)]
    names = [item.text() for item in top["labels"].items()]
    if len(names) != count:
        raise top["labels"].error(f"a list of {count} labels, as many as there are logits")
    return names


def _by_number(value: CheckedJson, count: int) -> list[str]:
    names = value.fields()
    if names.keys() != {str(index) for index in range(count)}:
        raise value.error(f"names of labels 0 to {count - 1}, as many as there are logits")
    return [names[str(index)].text() for index in range(count)]


def read_squash(companions: Companions, count: int) -> Squash:
    """Tell what makes scores of the logits of `count` labels of a text or an image.

    As in Hugging Face's pipelines, by problem_type in the bundle's config.json: nothing for a regression, the sigmoid
    of each for several labels at once or for a single label, softmax else.
    """
    config = companions.json(CONFIG)
    problem = None if config is None else config.get("problem_type")
    if problem is not None and problem.value == "regression":
        return "none"
    several = problem is not None and problem.value == "multi_label_classification"
    return "sigmoid" if several or count == 1 else "softmax"


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
    # Not >=: NaN is kept, and comes last.
    places = np.flatnonzero(~(scores < least))
    chosen: list[int] = places[np.argsort(-scores[places], kind="stable")][:count].tolist()
    return chosen
