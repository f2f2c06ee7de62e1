"""Labels of a text, a pair of texts or an image, as Hugging Face's classification pipelines give them.

Shapes: L labels.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from tfm.bundle import Manifest, TensorSpec

from ..inputs.batches import check_count
from ..inputs.checks import Array
from ..inputs.row import Row
from .base import Squash, Task, best, read_labels, scores_of


class Label(TypedDict):
    """A label of a text or an image."""

    label: str
    score: float


def check_top_k(top_k: int | None) -> int | None:
    """Return how many labels are asked for; None: all.

    Raises:
        InputError: It is no integer of at least 1.
    """
    return None if top_k is None else check_count("top_k", top_k)


def labeling(manifest: Manifest, logits: TensorSpec, squash: Squash, top_k: int | None) -> Task[list[Label]]:
    """Make the task of labeling texts or images."""
    labels = read_labels(manifest, int(logits.shape[-1]))

    def finish(item: Any, row: Row, values: Mapping[str, Array]) -> list[Label]:
        scores_L = scores_of(values[logits.name], squash)
        return [{"label": labels[place], "score": float(scores_L[place])} for place in best(scores_L, top_k)]

    return Task((logits.name,), finish)
