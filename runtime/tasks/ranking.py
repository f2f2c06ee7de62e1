"""Which documents answer a query, by a cross-encoder's scores, as sentence-transformers' CrossEncoder has them."""

from collections.abc import Mapping
from typing import Any, TypedDict

from tfm.bundle import CONFIG, SENTENCES, CheckedJson, Companions
from tfm.errors import BundleError

from ..inputs.checks import Array
from ..inputs.row import Row
from .base import Squash, Task, scores_of

_FUNCTIONS: dict[str, Squash] = {"Sigmoid": "sigmoid", "Identity": "none"}


class Ranked(TypedDict):
    """A document: its place among those that were given, its score and itself."""

    index: int
    score: float
    text: str


def read_score(companions: Companions) -> Squash:
    """Read what makes a score of a cross-encoder's logit: the sigmoid, unless its configuration names another.

    Raises:
        BundleError: It names what is not known here.
    """
    for named in _named(companions):
        # The first that says anything holds, whatever the others say.
        if named is not None and named.value is not None:
            # A path of Python's, of which nothing is ever imported here.
            name = named.text().rpartition(".")[2]
            if name not in _FUNCTIONS:
                raise BundleError(
                    f"{named.path}: {named.place} is {name}, which is not known here ({', '.join(_FUNCTIONS)} are); "
                    "run() gives logits"
                )
            return _FUNCTIONS[name]
    return "sigmoid"


def _named(companions: Companions) -> list[CheckedJson | None]:
    """Where sentence-transformers writes it, in the order in which it looks: its own file, now, and config.json."""
    config = companions.json(CONFIG) or {}
    within = config.get("sentence_transformers")
    return [
        (companions.json(SENTENCES) or {}).get("activation_fn"),
        within.fields().get("activation_fn") if within is not None and within.value is not None else None,
        config.get("sbert_ce_default_activation_function"),
    ]


def scoring(squash: Squash) -> Task[float]:
    """Make the task of scoring pairs by a single label."""

    def finish(item: Any, row: Row, values: Mapping[str, Array]) -> float:
        return float(scores_of(values["logits"], squash)[0])

    return Task(("logits",), finish)
