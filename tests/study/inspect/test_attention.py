"""Heads whose entropy and name are plain to see."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfm.errors import VerificationError
from tfm.study.inspect.attention import describe_heads, open_keys

ALL = np.ones((1, 4, 4), np.bool_)
IDS = [7, 8, 9, 8]


def head(weights: list[list[float]], ids: list[int] = IDS, causal: bool = False, cross: bool = False):
    array = np.array([weights])
    (found,) = describe_heads(array, open_keys(None, array.shape[1:], causal=causal), ids, cross=cross)
    return found


def shifted(offset: int) -> list[list[float]]:
    return [[float(k == min(max(q + offset, 0), 3)) for k in range(4)] for q in range(4)]


@pytest.mark.parametrize(
    ("weights", "label", "share"),
    [
        (shifted(0), "itself", 1.0),
        (shifted(-1), "previous token", 0.75),  # the first has none before it, and looks at itself
        (shifted(1), "next token", 0.75),
        ([[1.0, 0, 0, 0]] * 4, "first token", 1.0),
        ([[0, 0, 0, 1.0]] * 4, "last token", 1.0),
        ([[0, 0.3, 0.3, 0.4]] * 4, "", None),
        ([[0.25] * 4] * 4, "spread evenly", None),
    ],
)
def test_names(weights: list[list[float]], label: str, share: float | None) -> None:
    found = head(weights)
    assert (found.label, found.share) == (label, share)
    assert found.strongest == tuple(int(np.argmax(row)) for row in weights)


def test_the_same_token_elsewhere() -> None:
    swap = [[0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0], [0, 0, 1.0, 0]]
    found = head(swap, ids=[5, 5, 6, 6])
    assert (found.label, found.share) == ("same token elsewhere", 1.0)
    assert head(swap, ids=[5, 5, 6, 7]).share == 0.5  # half of what it gives out: enough
    assert head(swap, ids=[5, 6, 7, 8]).label != "same token elsewhere"


def test_over_another_sequence() -> None:
    two_of_three = [[0, 1.0, 0], [0, 1.0, 0]]
    assert head(two_of_three, ids=[3, 4], cross=True).label == "same place"  # half: the second of two queries
    assert head([[0, 0, 1.0]] * 2, ids=[3, 4], cross=True).label == "last token"
    assert head([[0, 0.6, 0.4], [0.6, 0, 0.4]], ids=[3, 3], cross=True).label == ""


def test_entropy_by_hand() -> None:
    found = head([[0.5, 0.5, 0, 0], [1.0, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1.0]])
    assert found.entropy == pytest.approx((math.log(2) + math.log(4)) / 4)
    assert found.relative == pytest.approx((0.5 + 1) / 4)


def test_what_is_masked_is_no_choice() -> None:
    rows = [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0.25] * 4]
    found = head(rows, causal=True)
    assert found.relative == pytest.approx(1)  # the first query has one key, and counts nowhere
    assert found.entropy == pytest.approx((math.log(2) + math.log(3) + math.log(4)) / 3)
    assert found.label == "spread evenly"
    assert head(rows).label != "spread evenly"


def test_one_token_has_no_choice() -> None:
    found = head([[1.0]], ids=[3])
    assert (found.entropy, found.relative, found.label, found.share) == (0.0, None, "", None)


@pytest.mark.parametrize(
    "mask",
    [
        np.tril(np.ones((1, 4, 4), np.bool_)),
        np.where(np.tril(np.ones((1, 4, 4))) > 0, 0.0, -np.inf),
        np.where(np.tril(np.ones((1, 4, 4))) > 0, -70.0, np.finfo(np.float32).min / 2),  # a bias of position beside it
        np.where(np.tril(np.ones((1, 4, 4))) > 0, 3.0, 3.0 - 10000.0),  # scores, closed as BERT closes them
    ],
)
def test_masks_of_every_kind(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(open_keys(mask, (4, 4), causal=False), np.tri(4, dtype=np.bool_)[None])
    np.testing.assert_array_equal(open_keys(np.ones_like(mask), (4, 4), causal=True), np.tri(4, dtype=np.bool_)[None])


@pytest.mark.parametrize("wrong", [np.nan, -0.25, 0.5])
def test_what_is_no_softmax_is_refused(wrong: float) -> None:
    weights = np.full((1, 4, 4), 0.25)
    weights[0, 1, 2] = wrong
    with pytest.raises(VerificationError, match="do not add up to 1"):
        describe_heads(weights, ALL, IDS)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_entropy_lies_between_its_ends(heads: int, length: int, seed: int, causal: bool) -> None:
    rng = np.random.default_rng(seed)
    opened = open_keys(rng.random((1, length, length)) > 0.4, (length, length), causal=causal) | np.eye(
        length, dtype=bool
    )
    scores = np.where(opened, rng.normal(0, 20, (heads, length, length)), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    for found in describe_heads(weights, opened, list(rng.integers(0, 3, length))):
        assert found.relative is None or -1e-12 <= found.relative <= 1 + 1e-12
        assert found.share is None or 0.5 <= found.share <= 1 + 1e-12
        assert found.entropy <= math.log(length) + 1e-12
