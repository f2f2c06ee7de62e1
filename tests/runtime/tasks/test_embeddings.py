"""Forms of embeddings and their similarity, against sentence-transformers where it is installed, and by hand."""

import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from tests.support.toys import TABLE_VD
from tfm.errors import BundleError, InputError
from tfm.runtime import embedding_ranges, load

sentence_transformers = None
if importlib.util.find_spec("sentence_transformers") is not None:
    import sentence_transformers

needs_theirs = pytest.mark.skipif(sentence_transformers is None, reason="needs the package sentence-transformers")
TEXTS = ["a b c", "d", "e f g h", "h a", "b"]
MEANS = [TABLE_VD[[1, *ids, 2]].mean(0) for ids in ([4, 5, 6], [7], [8, 9, 10, 11], [11, 4], [5])]


@pytest.fixture
def encoder(make_bundle: Any) -> Any:
    return load(make_bundle("encoder"), provider="cpu", threads=1, precision="fp32")  # int8 of the toy is twice that


@pytest.fixture
def rows(encoder: Any) -> np.ndarray:
    found: np.ndarray = encoder.embed(TEXTS)
    np.testing.assert_allclose(found, MEANS, rtol=1e-5, atol=1e-6)
    return found


def test_dimensions_and_length(encoder: Any, rows: np.ndarray) -> None:
    np.testing.assert_array_equal(encoder.embed(TEXTS, dimensions=3), rows[:, :3])
    unit = encoder.embed(TEXTS, normalize=True, dimensions=3)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(rows[:, :3], axis=1, keepdims=True), rows[:, :3], rtol=1e-5)


def test_bits(encoder: Any, rows: np.ndarray) -> None:
    packed = encoder.embed(TEXTS, dtype="ubinary")
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1)[:, : rows.shape[1]], rows > 0)
    signed = encoder.embed(TEXTS, dtype="binary")
    assert signed.dtype == np.int8
    np.testing.assert_array_equal(signed.astype(int) + 128, packed)


def test_steps_over_a_range(encoder: Any, rows: np.ndarray) -> None:
    low, high = ranges = embedding_ranges(rows)
    found = encoder.embed(TEXTS, dtype="int8", ranges=ranges)
    assert found.dtype == np.int8
    back = low + (found.astype(float) + 128.5) * (high - low) / 255
    assert np.all(np.abs(back - rows) <= (high - low) / 255)
    np.testing.assert_array_equal(encoder.embed(TEXTS, dtype="int8"), found)  # of the call's own embeddings
    np.testing.assert_array_equal(encoder.embed(TEXTS[:1], dtype="int8", ranges=ranges), found[:1])
    stream = encoder.embed_stream(TEXTS, dtype="int8", ranges=ranges)
    np.testing.assert_array_equal(list(stream), found)


@needs_theirs
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_as_sentence_transformers_quantizes(encoder: Any, rows: np.ndarray, dtype: Any) -> None:
    assert sentence_transformers is not None
    ranges = embedding_ranges(rows[:4])
    theirs = sentence_transformers.util.quantize_embeddings(rows, precision=dtype, ranges=ranges)
    ours = encoder.embed(TEXTS, dtype=dtype, ranges=ranges)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 5}, r"dimensions is 5, but this model's embeddings have only 4"),
        ({"dimensions": 0}, r"dimensions must be an integer of at least 1, but is 0"),
        ({"dtype": "int4"}, r"there is no dtype 'int4' for embeddings; the nearest is 'int8'"),
        ({"dtype": "int8"}, r"int8 of one embedding alone says nothing: pass ranges=embedding_ranges\("),
        (
            {"dtype": "int8", "ranges": [[0.0] * 3] * 2},
            r"ranges must be \(2, 4\), the .*, but is \(2, 3\)",
        ),
        ({"normalize": 1}, r"normalize must be True or False, but is 1"),
        ({"dimension": 3}, r"there is no option 'dimension'"),
    ],
)
def test_refusals(encoder: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.embed("a", **options)


def test_ranges_of_too_little() -> None:
    with pytest.raises(InputError, match=r"ranges are of two or more embeddings .*, not of float64 \(1, 3\)"):
        embedding_ranges([[0.0, 1.0, 2.0]])


SIMILARITY = {
    "cosine": lambda a, b: (a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)),
    "dot": lambda a, b: a @ b,
    "euclidean": lambda a, b: -np.sqrt(((a - b) ** 2).sum()),
    "manhattan": lambda a, b: -np.abs(a - b).sum(),
}


@pytest.mark.parametrize("name", [None, *SIMILARITY])
def test_similarity(make_bundle: Any, remake_digests: Any, name: str | None) -> None:
    folder = make_bundle("encoder")
    if name is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": name}))
        remake_digests(folder)
    model = load(folder, provider="cpu", threads=1, precision="fp32")
    expected = [[SIMILARITY[name or "cosine"](a, b) for b in MEANS[2:]] for a in MEANS]
    found = model.similarity(TEXTS, TEXTS[2:])
    assert (found.dtype, found.shape) == (np.float32, (5, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model.similarity(model.embed(TEXTS), TEXTS[2:]), found)
    if sentence_transformers is not None:
        theirs = sentence_transformers.SimilarityFunction.to_similarity_fn(name or "cosine")
        np.testing.assert_allclose(theirs(model.embed(TEXTS), model.embed(TEXTS[2:])).numpy(), found, atol=1e-5)


def test_similarity_of_other_sizes(encoder: Any) -> None:
    with pytest.raises(InputError, match=r"embeddings of 4 and 3 dimensions cannot be compared"):
        encoder.similarity(["a"], np.zeros((2, 3), np.float32))


def test_a_similarity_that_is_not_known(make_bundle: Any, remake_digests: Any) -> None:
    folder = make_bundle("encoder")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": "maxsim"}))
    remake_digests(folder)
    with pytest.raises(BundleError, match=r"similarity_fn_name must be one of cosine, dot, euclidean, man"):
        load(folder, provider="cpu", threads=1).similarity("a", "b")
