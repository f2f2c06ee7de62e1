"""Labels that a model has never seen, by whether a text entails "This example is …", as Hugging Face's pipeline has it.

Shapes: N candidate labels, L labels of the model.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy.typing as npt

from tfm.bundle import brief
from tfm.errors import InputError

from ..inputs.checks import Array
from .base import Task, scores_of


class ZeroShot(TypedDict):
    """A text, the labels that were given for it, the likeliest first, and their scores."""

    sequence: str
    labels: list[str]
    scores: list[float]


def entailment_of(labels: Sequence[str]) -> int | None:
    """Find the label of a model of natural language inference that says that a text entails another."""
    return next((place for place, label in enumerate(labels) if label.lower().startswith("entail")), None)


def check_candidates(labels: str | Iterable[str], template: str) -> list[str]:
    """Return the labels to choose from: a list, or one text with commas between them.

    Raises:
        InputError: There is none, or one is no text, or the template has no place for one.
    """
    # As the pipeline reads them: "sport, politics".
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    listed = list(labels)
    if not listed or not all(isinstance(label, str) for label in listed):
        raise InputError(f"candidate_labels must be at least one text, but is {brief(labels)}")
    if not isinstance(template, str):
        raise InputError(f"hypothesis_template must be a text, but is {brief(template)}")
    # A template that is wrong is found now, not after a thousand texts.
    try:
        filled = template.format(listed[0])
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(f"hypothesis_template {template!r} cannot be filled with a label: {error}") from error
    if filled == template:
        raise InputError(f"hypothesis_template {template!r} has no {{}} where the label goes")
    return listed


def entailing() -> Task[Array]:
    """Make the task of giving the logits of a pair."""
    # Not a view of the whole batch's.
    return Task(("logits",), lambda item, row, values: values["logits"].copy())


def choose(
    text: str, candidates: Sequence[str], logits_NL: npt.NDArray[Any], entailment: int, *, multi_label: bool
) -> ZeroShot:
    """Make scores of what a text entails.

    Args:
        text: The text.
        candidates: The labels that were given.
        logits_NL: Of the text beside the hypothesis of each of them.
        entailment: The model's label of what is entailed.
        multi_label: Whether each stands for itself, against the model's label of contradiction; one alone always does.
    """
    if multi_label or len(candidates) == 1:
        # As the pipeline has it: the first label, or the last where the first is entailment.
        contradiction = -1 if entailment == 0 else 0
        scores_N = scores_of(logits_NL[:, [contradiction, entailment]], "softmax")[:, 1]
    else:
        scores_N = scores_of(logits_NL[:, entailment], "softmax")
    # Not by the negated scores: of two labels that tie, the pipeline gives the later one first.
    order = scores_N.argsort()[::-1].tolist()
    return {
        "sequence": text,
        "labels": [candidates[place] for place in order],
        "scores": [float(scores_N[place]) for place in order],
    }
