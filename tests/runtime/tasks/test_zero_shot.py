"""Labels that a model has never seen, against Hugging Face's pipeline on tiny random checkpoints."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED, LONGEST
from tfm.errors import InputError, TextWarning

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

INFERENCE = {0: "contradiction", 1: "neutral", 2: "ENTAILMENT"}
TURNED = {0: "entailment", 1: "neutral", 2: "contradiction"}
TEXTS = ["a small town in new york", "who lives in paris? " * 20, "é 你 😀", " "]
CANDIDATES = ["the capital", "a walk", "what it does not say", "new york"]


def compare(ours: list[Any], theirs: list[Any]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one["sequence"] == other["sequence"]
        assert one["labels"] == other["labels"]
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    ("family", "names"),
    [(family, TURNED if family == "roberta" else INFERENCE) for family in COMPARED["classify_zero_shot"][2]],
)
def test_as_the_pipeline(open_both: Callable[..., Any], family: str, names: dict[int, str], multi_label: bool) -> None:
    both = open_both(family, "ForSequenceClassification", id2label=names)
    theirs = transformers.pipeline("zero-shot-classification", model=both.theirs, tokenizer=both.words)
    assert both.ours.tasks == ("classify", "classify_zero_shot")
    for candidates in (CANDIDATES, "walk, town", ["paris"]):
        expected = [theirs(text, candidates, multi_label=multi_label) for text in TEXTS]
        found = both.ours.classify_zero_shot(TEXTS, candidates, multi_label=multi_label, long_texts="cut")
        compare(found, expected)
    template = "is it {}, or not?"
    compare(
        both.ours.classify_zero_shot(TEXTS[0], CANDIDATES, template),
        [theirs(TEXTS[0], CANDIDATES, hypothesis_template=template)],
    )
    stream = both.ours.classify_zero_shot_stream(iter(TEXTS), ["paris"], window=3, long_texts="cut")
    assert list(stream) == both.ours.classify_zero_shot(TEXTS, ["paris"], long_texts="cut")


def test_a_label_that_is_too_long(open_both: Callable[..., Any]) -> None:
    ours = open_both("bert", "ForSequenceClassification", id2label=INFERENCE).ours
    with pytest.raises(InputError, match=rf"inputs\[0\] has \d+ tokens, but this model takes at most {LONGEST}"):
        ours.classify_zero_shot(["a", ""], ["paris", "new york " * 23])
    with pytest.warns(TextWarning, match=r"inputs\[1\] has more tokens than the 48 that are read: the rest does not"):
        ours.classify_zero_shot(["a", "new york " * 40], ["paris", "town"])


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], "is {}", r"candidate_labels must be at least one text, but is \[\]"),
        ([3], "is {}", r"candidate_labels must be at least one text, but is \[3\]"),
        (["a"], "is it", r"hypothesis_template 'is it' has no \{\} where the label goes"),
        (["a"], "is {} {}", r"hypothesis_template 'is \{\} \{\}' cannot be filled with a label"),
        (["a"], "is {b}", r"hypothesis_template 'is \{b\}' cannot be filled with a label"),
    ],
)
def test_refusals(open_both: Callable[..., Any], labels: Any, template: str, message: str) -> None:
    ours = open_both("bert", "ForSequenceClassification", id2label=INFERENCE).ours
    with pytest.raises(InputError, match=message):
        ours.classify_zero_shot("a", labels, template)
    with pytest.raises(InputError, match=r"inputs\[1\] must be a text, but is 3"):
        ours.classify_zero_shot(["a", 3], ["a"])


def test_no_entailment(open_both: Callable[..., Any]) -> None:
    ours = open_both("bert", "ForSequenceClassification", num_labels=3).ours
    with pytest.raises(InputError, match=r"no label that begins with 'entail', .* its labels are LABEL_0, LABEL_1"):
        ours.classify_zero_shot("a", ["b"])
