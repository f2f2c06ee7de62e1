"""Pairs of texts, against transformers' tokenizers and models, on tiny random checkpoints of many families."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import FAMILIES, LONGEST, make, quick
from tfm.runtime import load

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

LONG = "who lives in the small town, and what it does not say. " * 6
PAIRS = [
    ("who lives in paris?", "the capital of france is paris"),
    ("a", LONG),
    (LONG, "a small town"),
    (LONG, LONG[5:]),
    ("", "new york"),
    ("walks <mask> [MASK] </s> [SEP]", "café 你 😀 zzz"),
    ("the " * 30, "new " * 29),
    ("new " * 29, "the " * 30),
]
Opened = Callable[[str], tuple[Any, Any, Any]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A classifier as we open it, and as transformers does."""
    made: dict[str, tuple[Any, Any, Any]] = {}

    def open_both(family: str) -> tuple[Any, Any, Any]:
        if family not in made:
            folder = tmp_path_factory.mktemp("pairs")
            make(family, "ForSequenceClassification", folder / "checkpoint", num_labels=3)
            model = load(quick(folder / "checkpoint", folder / "x.tfm"), provider="cpu", threads=1)
            theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint").eval()
            made[family] = model, theirs, transformers.AutoTokenizer.from_pretrained(folder / "checkpoint")
        return made[family]

    return open_both


@pytest.mark.parametrize("family", FAMILIES)
def test_classify_pairs(opened: Opened, family: str) -> None:
    ours, theirs, words = opened(family)
    assert ours.tasks == ("classify",)
    found = ours.classify(PAIRS, top_k=None, long_texts="cut")
    for pair, labels in zip(PAIRS, found, strict=True):
        inputs = words([pair[0]], [pair[1]], truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(**inputs).logits.softmax(-1)[0].numpy()
        scores = {label["label"]: label["score"] for label in labels}
        np.testing.assert_allclose(
            list(map(scores.get, ["LABEL_0", "LABEL_1", "LABEL_2"])), expected, rtol=0, atol=1e-5
        )
