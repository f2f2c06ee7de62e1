"""Scores of cross-encoders, against sentence-transformers' where it is installed, and transformers' models by hand."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED, LONGEST, edit_json, make, quick
from tfm.bundle.json_files import describe_file
from tfm.errors import BundleError, InputError, MissingTaskError
from tfm.runtime import load

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

HAS_THEIRS = importlib.util.find_spec("sentence_transformers") is not None
QUERY = "who lives in paris?"
DOCUMENTS = ["the capital of france is paris", "a small town", "new york walks " * 30, "", "what it does not say 😀"]
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("rank") / "checkpoint"
            make(family, "ForSequenceClassification", made[family], num_labels=1)
            quick(made[family], made[family].with_name("x.tfm"))
        return made[family]

    return save


def logits_of(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in DOCUMENTS:
        inputs = words([[QUERY, text]], truncation="longest_first", max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**inputs).logits.item())
    return np.array(found)


@pytest.mark.parametrize("family", COMPARED["rank"][2])
def test_rank(checkpoint: Callable[[str], Path], family: str) -> None:
    folder = checkpoint(family)
    model = load(folder.with_name("x.tfm"), provider="cpu", threads=1)
    assert model.tasks == ("classify", "rank")
    ranked = model.rank(QUERY, DOCUMENTS, long_texts="cut")
    expected = 1 / (1 + np.exp(-logits_of(folder)))
    assert [one["index"] for one in ranked] == np.argsort(-expected).tolist()
    np.testing.assert_allclose([one["score"] for one in ranked], np.sort(expected)[::-1], **CLOSE)
    assert [one["text"] for one in ranked] == [DOCUMENTS[one["index"]] for one in ranked]
    assert model.rank(QUERY, DOCUMENTS, top_k=2, long_texts="cut") == ranked[:2]
    assert model.rank(QUERY, []) == []


@pytest.mark.skipif(not HAS_THEIRS, reason="needs the package sentence-transformers")
@pytest.mark.parametrize("family", COMPARED["rank"][2])
def test_as_a_cross_encoder_ranks(checkpoint: Callable[[str], Path], family: str) -> None:
    from sentence_transformers import CrossEncoder

    folder = checkpoint(family)
    theirs = CrossEncoder(str(folder), device="cpu")
    model = load(folder.with_name("x.tfm"), provider="cpu", threads=1)
    ranked = model.rank(QUERY, DOCUMENTS, long_texts="cut")
    expected = theirs.rank(QUERY, DOCUMENTS)
    assert [one["index"] for one in ranked] == [one["corpus_id"] for one in expected]
    np.testing.assert_allclose([one["score"] for one in ranked], [one["score"] for one in expected], **CLOSE)
    scores = theirs.predict([(QUERY, text) for text in DOCUMENTS])
    labels = model.classify([(QUERY, text) for text in DOCUMENTS], long_texts="cut")
    np.testing.assert_allclose([label["score"] for [label] in labels], scores, **CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_a_score_that_is_the_logit(checkpoint: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = checkpoint("bert")
    bundle = edited(folder, tmp_path, changes)
    found = load(bundle, provider="cpu", threads=1).rank(QUERY, DOCUMENTS, long_texts="cut")
    np.testing.assert_allclose([one["score"] for one in found], np.sort(logits_of(folder))[::-1], **CLOSE)


def edited(folder: Path, place: Path, changes: dict[str, Any]) -> Path:
    """Copy a bundle, with other values in its config.json."""
    bundle = shutil.copytree(folder.with_name("x.tfm"), place / "x.tfm")
    edit_json(bundle / "config.json", **changes)
    files = load(folder.with_name("x.tfm"), provider="cpu", threads=1).manifest.files
    digests = {name: {"size": file.size, "sha256": file.sha256} for name, file in files.items()}
    edit_json(bundle / "manifest.json", files=digests | {"config.json": describe_file(bundle / "config.json")})
    return bundle


def test_a_score_that_is_not_known(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    changes = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
    bundle = edited(checkpoint("bert"), tmp_path, changes)
    with pytest.raises(BundleError, match=r"activation_fn is Tanh, which is not known here \(Sigmoid, Identity are\)"):
        load(bundle, provider="cpu", threads=1).rank(QUERY, DOCUMENTS)


def test_refusals(checkpoint: Callable[[str], Path], encoder: Any, copier: Any) -> None:
    model = load(checkpoint("bert").with_name("x.tfm"), provider="cpu", threads=1)
    with pytest.raises(InputError, match=r"documents\[1\] must be a text, but is int"):
        model.rank("a", ["b", 3])
    with pytest.raises(InputError, match=r"query must be a text, but is list"):
        model.rank(["a"], ["b"])
    with pytest.raises(InputError, match=r"no task 'rank': it has no labels for pairs of texts, or several"):
        encoder.rank("a", ["b"])
    with pytest.raises(MissingTaskError, match=r"has no rank\(\)"):
        copier.rank("a", ["b"])
