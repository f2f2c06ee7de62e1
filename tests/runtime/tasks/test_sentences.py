"""Sentence embeddings, against sentence-transformers on tiny random checkpoints of several families."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED, make, quick
from tfm.runtime import embedding_ranges, load

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="the oracle: pip install sentence-transformers"
)

TEXTS: list[Any] = [
    "who lives in paris?",
    "the capital of france is paris, " * 20,
    "",
    "é 你 😀 [SEP] <mask> </s>",
    ("a small town", "new york walks " * 20),
    ("what it does not say", ""),
]


@pytest.mark.parametrize("family", COMPARED["embed"][2])
def test_as_sentence_transformers_encodes(tmp_path: Path, family: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    make(family, "Model", tmp_path / "base")
    words = Transformer(str(tmp_path / "base"), max_seq_length=24)
    theirs = SentenceTransformer(modules=[words, Pooling(32, pooling_mode="mean")], device="cpu")
    theirs.save(str(tmp_path / "checkpoint"))
    ours = load(quick(tmp_path / "checkpoint", tmp_path / "x.tfm"), provider="cpu", threads=1)
    expected = theirs.encode(TEXTS)
    found = ours.embed(TEXTS, long_texts="cut")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        ours.embed(TEXTS, dimensions=9, normalize=True, long_texts="cut"),
        theirs.encode(TEXTS, truncate_dim=9, normalize_embeddings=True),
        rtol=0,
        atol=1e-5,
    )
    # Where a value is next to 0 float32's last bit decides: of these none is.
    assert np.abs(expected).min() > 1e-5
    bits = ours.embed(TEXTS, dtype="binary", long_texts="cut")
    np.testing.assert_array_equal(bits, theirs.encode(TEXTS, precision="binary"))
    ranges = embedding_ranges(expected)
    steps = ours.embed(TEXTS, dtype="int8", ranges=ranges, long_texts="cut").astype(int)
    theirs_too = sentence_transformers.util.quantize_embeddings(expected, precision="int8", ranges=ranges).astype(int)
    assert np.abs(steps - theirs_too).max() <= 1
    np.testing.assert_allclose(ours.similarity(found, found), theirs.similarity(expected, expected), rtol=0, atol=1e-5)
