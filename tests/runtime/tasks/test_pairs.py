"""Pairs of texts, against transformers' tokenizers and models, on tiny random checkpoints of many families."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED, LONGEST, edit_json, make, quick
from tfm.bundle.json_files import describe_file
from tfm.errors import InputError
from tfm.runtime import load
from tfm.runtime.tasks.base import scores_of

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


@pytest.mark.parametrize("family", COMPARED["classify"][2])
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


def test_what_run_takes(opened: Opened) -> None:
    ours, theirs, words = opened("bert")
    feeds = ours.feeds(PAIRS[:4], long_texts="cut")
    inputs = words(
        [first for first, _ in PAIRS[:4]],
        [second for _, second in PAIRS[:4]],
        truncation=True, max_length=LONGEST, padding=True, return_tensors="pt",
    )  # fmt: skip
    assert {name: value.tolist() for name, value in feeds.items()} == {n: v.tolist() for n, v in inputs.items()}
    with torch.no_grad():
        expected = theirs(**inputs).logits.softmax(-1).numpy()
    found = scores_of(ours.run(feeds)["logits"], "softmax")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert ours.tokenize(PAIRS[:1]) == [inputs["input_ids"][0][inputs["attention_mask"][0] == 1].tolist()]


def test_types_are_left_out_where_the_tokenizer_says_so(opened: Opened, tmp_path: Path) -> None:
    """As transformers' tokenizers do where model_input_names does not name them."""
    ours, _, _ = opened("bert")
    folder = shutil.copytree(ours.manifest.folder, tmp_path / "x.tfm")
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    files = {name: {"size": file.size, "sha256": file.sha256} for name, file in ours.manifest.files.items()}
    files["tokenizer_config.json"] = describe_file(folder / "tokenizer_config.json")
    edit_json(folder / "manifest.json", files=files)
    model = load(folder, provider="cpu", threads=1)
    assert ours.feeds(PAIRS[:1])["token_type_ids"].any()
    assert not model.feeds(PAIRS[:1])["token_type_ids"].any()
    assert model.classify(PAIRS[:1]) != ours.classify(PAIRS[:1])


def test_streams_and_several_threads_are_as_lists(opened: Opened) -> None:
    ours, _, _ = opened("bert")
    expected = ours.classify(PAIRS * 9, top_k=None, long_texts="cut")
    assert list(ours.classify_stream(iter(PAIRS * 9), top_k=None, window=5, long_texts="cut")) == expected
    several = load(ours.manifest.folder, provider="cpu", threads=2)
    assert several.classify(PAIRS * 9, top_k=None, long_texts="cut", batch_tokens=1) == ours.classify(
        PAIRS * 9, top_k=None, long_texts="cut", batch_tokens=1
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([("a", "b"), [3, 4]], r"inputs mix texts with token ids; pass all as one or the other"),
        ([("a", "b", "c")], r"inputs\[0\] "),
        ([("a", 3)], r"inputs\[0\] "),
        ([("a", "b\ud800")], r"is not valid Unicode"),
        ([], r"inputs are none"),
    ],
)
def test_no_pairs(opened: Opened, inputs: list[Any], message: str) -> None:
    ours, _, _ = opened("bert")
    with pytest.raises(InputError, match=message):
        ours.feeds(inputs)
