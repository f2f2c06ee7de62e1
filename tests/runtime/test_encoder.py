from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm.errors import InputError, TextWarning
from tfm.runtime import load

IDS = {"a": 4, "b": 5, "c": 6, "d": 7, "e": 8, "f": 9, "g": 10, "h": 11}


def expected(table, text, most=8):
    """Mean of <s>, the words and </s>, truncated: float64, twice the table as int8 is here."""
    words = [IDS.get(word, 3) for word in text.split()][: most - 2]
    return 2 * table[[1, *words, 2]].astype(np.float64).mean(0)


def test_embed(encoder, table):
    texts = ["a b c", "d", "a b c d e f g h", "", "zebra b"]
    result = encoder.embed(texts, long_texts="cut")
    assert result.dtype == np.float32
    # one float32 rounding per addition of at most 8 numbers of size 3
    np.testing.assert_allclose(result, [expected(table, text) for text in texts], rtol=0, atol=4e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=10).map(" ".join)), batch_tokens=st.integers(1, 40)
)
def test_order_and_batches_do_not_matter(encoder, table, texts, batch_tokens):
    result = encoder.embed(texts, batch_tokens=batch_tokens, long_texts="cut")
    assert result.shape == (len(texts), 4)
    for row, text in zip(result, texts, strict=True):
        np.testing.assert_allclose(row, expected(table, text), rtol=0, atol=4e-6)


def test_one_text_is_as_a_list_of_one(encoder):
    np.testing.assert_array_equal(encoder.embed("a b"), encoder.embed(["a b"]))
    assert encoder.embed("a b").shape == (1, 4)


def test_no_texts(encoder):
    result = encoder.embed([])
    assert (result.shape, result.dtype) == ((0, 4), np.float32)


def test_max_text_tokens(make_bundle, table):
    model = load(make_bundle("encoder", max_text_tokens=4), provider="cpu")
    with pytest.warns(TextWarning, match=r"inputs\[0\] has more tokens than the 4 that are read: the rest does not"):
        found = model.embed("a b c d")
    np.testing.assert_allclose(found, [expected(table, "a b c d", 4)], rtol=0, atol=4e-6)


def test_without_segments(make_bundle, table):
    model = load(make_bundle("encoder without segments"), provider="cpu")
    np.testing.assert_allclose(model.embed(["a b", "c"]), [expected(table, t) for t in ("a b", "c")], rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", [1, 2]], "inputs mix texts with token ids; pass all as one or the other"),
        ([[1, 2], 3], r"inputs\[1\] must be a text or a sequence of token ids, but is int 3"),
        ([[1, 2], [1, 12]], r"inputs\[1\]\[1\] is 12; ids must be in \[0, 12\)"),
        ([[1, 2], []], r"inputs\[1\] has no tokens; leave it out"),
        (None, "inputs must be texts or rows of token ids, but are None"),
        (b"abc", "inputs must be texts or rows of token ids, but are a bytes"),
        (["a\ud800"], r"the text 'a\\ud800' is not valid Unicode: '\\ud800' at 1"),
    ],
)
def test_wrong_texts(encoder, texts, message):
    with pytest.raises(InputError, match=message):
        encoder.embed(texts)


@pytest.mark.parametrize(
    ("precision", "options", "sizes"),
    [
        # "a b" is 4 tokens: 128 of it are a batch of 512
        ("fp32", {}, [128, 128, 4]),
        ("fp16", {}, [128, 128, 4]),
        ("int8", {}, [1] * 260),
        ("int8", {"batch_tokens": 44}, [11] * 23 + [7]),
    ],
)
def test_how_many_texts_go_together(make_bundle, edit_manifest, monkeypatch, precision, options, sizes):
    """Only where activations have scales, batch-mates would share them."""
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m.update(graphs={precision: m["graphs"]["fp32"]}))
    model = load(bundle, provider="cpu", threads=1)
    session, seen = model._sessions["model"], []
    run = session.run

    def watched(feeds, **options):
        seen.append(len(feeds["input_ids"]))
        return run(feeds, **options)

    monkeypatch.setattr(session, "run", watched)
    model.embed(["a b"] * 260, **options)
    assert (model.precision, seen) == (precision, sizes)


@pytest.mark.parametrize("name", ["batch_tokens", "window"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True])
def test_wrong_counts(encoder, name, value):
    """A stream says so when it is made, not when it is first read."""
    with pytest.raises(InputError, match=rf"{name} must be an integer of at least 1, but is {value!r}"):
        encoder.embed_stream(["a"], **{name: value})


def test_ids_in_place_of_texts(encoder):
    rows = encoder.tokenize(["a b", "c"])
    np.testing.assert_array_equal(encoder.embed(rows), encoder.embed(["a b", "c"]))
    np.testing.assert_array_equal(encoder.embed(np.array([[1, 4, 2]])), encoder.embed("a"))


def test_what_a_bundle_can_do(make_bundle):
    for kind, tasks in (("encoder", ("embed",)), ("encoder without pooling", ())):
        assert load(make_bundle(kind), provider="cpu").tasks == tasks


def test_without_pooling(make_bundle):
    model = load(make_bundle("encoder without pooling"), provider="cpu")
    with pytest.raises(
        InputError, match=r"has no task 'embed': it has no sentence_embedding, since its checkpoint .*; run\(\) "
    ):
        model.embed(["a"])


def test_no_tokenizer(make_bundle, edit_manifest):
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m["files"].pop("tokenizer.json"))
    model = load(bundle, provider="cpu")
    with pytest.raises(InputError, match=r"has no tokenizer.json, so it takes no texts; pass token ids"):
        model.embed(["a"])
    assert model.embed([]).shape == (0, 4)
    assert model.embed([[4, 5]]).shape == (1, 4)


def test_run(encoder, table):
    ones = np.ones((1, 2), np.int64)
    result = encoder.run(input_ids=[[4, 5]], attention_mask=ones, token_type_ids=ones)
    np.testing.assert_allclose(result["last_hidden_state"], 2 * table[[[4, 5]]] + 1, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="the input 'token_type_ids' is missing"):
        encoder.run(input_ids=ones, attention_mask=ones)


def test_many_threads_get_the_same(encoder):
    texts = [" ".join("abcdefgh"[: n % 6]) for n in range(48)]
    alone = [encoder.embed([text]) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: encoder.embed([text]), texts))
    np.testing.assert_array_equal(together, alone)
