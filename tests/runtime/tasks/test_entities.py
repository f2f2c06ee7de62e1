"""Labels of tokens, alone and aggregated, against Hugging Face's pipeline on tiny random checkpoints."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED
from tfm.errors import InputError

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

LABELS = {0: "O", 1: "B-PLACE", 2: "I-PLACE", 3: "DEED"}
TEXTS = [
    "Paris is the capital of France, where towns walking walkers lives!",
    "zzz new york's town? the é 你 😀 walks",
    "the",
    "a small TOWN is in new york and what it does not say",
    "x [SEP] <mask> in </s>",
]


@pytest.fixture
def both(open_both: Callable[..., Any], request: pytest.FixtureRequest) -> tuple[Any, Any]:
    found = open_both(request.param, "ForTokenClassification", id2label=LABELS)
    return found.ours, transformers.pipeline("token-classification", model=found.theirs, tokenizer=found.words)


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> int:
    assert [{k: v for k, v in one.items() if k != "score"} for one in ours] == [
        {k: v for k, v in one.items() if k != "score"} for one in theirs
    ]
    np.testing.assert_allclose(
        [one["score"] for one in ours], [float(one["score"]) for one in theirs], rtol=0, atol=1e-5
    )
    return len(ours)


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("both", COMPARED["classify_tokens"][2], indirect=True)
def test_as_the_pipeline_aggregates(both: tuple[Any, Any], aggregation: str) -> None:
    ours, theirs = both
    assert ours.tasks == ("classify_tokens",)
    for ignored in (("O",), ()):
        found = ours.classify_tokens(TEXTS, ignored, aggregation)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            expected = [
                theirs(text, aggregation_strategy=aggregation, ignore_labels=list(ignored) or [""]) for text in TEXTS
            ]
        counts = [same(one, other) for one, other in zip(found, expected, strict=True)]
        assert sum(counts) >= len(TEXTS)
    assert list(ours.classify_tokens_stream(iter(TEXTS), (), aggregation, window=2)) == found


def test_aggregation_changes_what_is_found(open_both: Callable[..., Any]) -> None:
    ours = open_both("bert", "ForTokenClassification", id2label=LABELS).ours
    found = {name: ours.classify_tokens(TEXTS, (), name) for name in ("none", "simple", "first", "average", "max")}
    counts = {name: sum(map(len, one)) for name, one in found.items()}
    assert counts["none"] > counts["simple"]
    named = [
        repr([[(one["word"], one["entity_group"]) for one in text] for text in found[name]])
        for name in ("simple", "first", "average", "max")
    ]
    assert len(set(named)) > 2


def test_refusals(open_both: Callable[..., Any]) -> None:
    ours = open_both("bert", "ForTokenClassification", id2label=LABELS).ours
    with pytest.raises(InputError, match=r"there is no aggregation 'mean'; the nearest is"):
        ours.classify_tokens("a", aggregation="mean")
    with pytest.raises(InputError, match=r"inputs\[0\] is a pair, and classify_tokens takes single texts"):
        ours.classify_tokens([("a", "b")])
