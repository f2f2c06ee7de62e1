"""Decoder and EncoderDecoder: toys whose right output is plain, and wrong without cache, mask or order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm.errors import BundleError, InputError
from tfm.runtime import load
from tfm.runtime.sessions.binding import Binding
from tfm.runtime.sessions.session import Session

both = pytest.mark.parametrize("kind", ["copier", "counter"])
words = st.text("abcdefgh", min_size=1, max_size=8)


def spaced(word):
    return " ".join(word)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(texts=st.lists(words), batch_size=st.integers(1, 5))
def test_sources_are_copied(copier, texts, batch_size):
    assert copier.generate(texts, batch_size=batch_size) == [spaced(text[:6]) for text in texts]


def test_ids_give_ids(copier, counter):
    assert copier.generate([[4, 5], np.array([9]), (11, 11, 11)]) == [[4, 5], [9], [11, 11, 11]]
    assert counter.generate([[9], [4, 10]]) == [[10, 11], [11]]


def test_texts_give_texts(copier, counter):
    assert copier.generate("abc") == ["a b c"]
    assert counter.generate(["af", "h", "e"]) == ["g h", "", "f g h"]
    assert copier.generate([]) == counter.generate([]) == []


def test_max_new_tokens(copier, counter):
    assert copier.generate(["abcdefgh"]) == ["a b c d e f"]
    assert copier.generate(["abcdefgh", "ab"], max_new_tokens=3) == ["a b c", "a b"]
    assert counter.generate(["a"], max_new_tokens=np.int64(1)) == ["b"]


def test_the_models_limit_ends_a_row(copier, counter):
    """8 positions: <s> and 7 letters fill them, and the token that the eighth gives needs none."""
    assert copier.generate(["abcdefgh"], max_new_tokens=100) == ["a b c d e f g h"]
    assert counter.generate([[4, 4, 4, 4, 4, 4]], max_new_tokens=100) == [[5, 6, 7]]
    assert counter.generate([[4] * 8], max_new_tokens=100) == [[5]]
    together = counter.generate([[4] * 8, [5, 5], [4]], max_new_tokens=100)
    assert together == [[5], [6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 11]]  # each row has a limit of its own
    assert counter.generate([[4] * 8, [4]], max_new_tokens=2) == [[5], [5, 6]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(prompts=st.lists(st.lists(st.integers(4, 11), min_size=1, max_size=8)), batch_size=st.integers(1, 5))
def test_ragged_prompts_are_continued(counter, prompts, batch_size):
    expected = [list(range(row[-1] + 1, 12))[: min(6, 9 - len(row))] for row in prompts]
    assert counter.generate(prompts, batch_size=batch_size) == expected


def test_any_of_several_ids_ends_a_row(make_bundle, edit_manifest):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(eos_token_id=[7, 2, 9]))
    assert load(bundle, provider="cpu").generate([[4], [7], [10]]) == [[5, 6], [8], [11]]


def test_no_end_token(make_bundle, edit_manifest):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(eos_token_id=None, bos_token_id=None, pad_token_id=None))
    assert load(bundle, provider="cpu").generate([[10]], max_new_tokens=4) == [[11, 2, 3, 4]]


def test_the_cache_is_used(copier, monkeypatch):
    """Each source goes through the encoder once, and each step is one token."""
    seen = {"encoder": [], "decoder": []}
    encoder, run, step = copier._sessions["encoder"], Session.run, Binding.run

    def run_once(session, **arrays):
        seen["encoder"].append(arrays["input_ids"].shape)
        return run(session, **arrays)

    def step_once(binding, control=None):
        seen["decoder"].append(binding._arrays["input_ids"].shape)
        return step(binding, control)

    monkeypatch.setattr(encoder, "run", lambda **arrays: run_once(encoder, **arrays))
    monkeypatch.setattr(Binding, "run", step_once)
    copier.generate(["ab", "abc"])
    assert seen == {"encoder": [(2, 3)], "decoder": [(2, 1)] * 3 + [(1, 1)]}  # the first row leaves when it has ended


@both
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["abc", [4]], "inputs mix texts with token ids; pass all as one or the other"),
        ([[4], []], r"inputs\[1\] has no tokens; leave it out"),
        (["a", ""], "the text '' has no tokens; leave it out"),
        ([[4], [4, 12]], r"inputs\[1\]\[1\] is 12; ids must be in \[0, 12\)"),
        ([[-1]], r"inputs\[0\]\[0\] is -1; ids must be in"),
        ([[2**63]], r"inputs\[0\]\[0\] is 9223372036854775808; ids must be in"),
        ([[4] * 9], r"inputs\[0\] has 9 tokens, but this model takes at most 8; shorten it"),
        (["abcdabcda"], r"inputs\[0\] has 9 tokens, but this model takes at most 8"),
        ([[1.0]], r"inputs\[0\] must be a text or a sequence of token ids, but is list \[1.0\]"),
        ([[True]], r"inputs\[0\] must be a text or a sequence of token ids"),
        ([4, 5], r"inputs\[0\] must be a text or a sequence of token ids, but is int 4"),
        ([None], r"inputs\[0\] must be a text or a sequence"),
        ([[[4], [4, 5]]], r"inputs\[0\] is no sequence of token ids"),
        (5, "inputs must be texts or rows of token ids, but are an int"),
        (["ab cd"], r"' ' in the text 'ab cd' \(at 2\) is not in the model's vocabulary; replace it"),
    ],
)
def test_wrong_inputs(request, kind, inputs, message):
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(kind).generate(inputs)


@both
@pytest.mark.parametrize("count", [0, -3, 1.5, True, "4"])
def test_wrong_counts(request, kind, count):
    with pytest.raises(InputError, match=rf"max_new_tokens must be an integer of at least 1, but is {count!r}"):
        request.getfixturevalue(kind).generate(["a"], max_new_tokens=count)


@both
def test_wrong_batch_size(request, kind):
    with pytest.raises(InputError, match="batch_size must be an integer of at least 1, but is 0"):
        request.getfixturevalue(kind).generate(["a"], batch_size=0)


@both
def test_no_generation_settings(make_bundle, kind):
    model = load(make_bundle(kind, generation=None), provider="cpu")
    with pytest.raises(
        BundleError, match=r"does not say how to generate \(generation is null in its manifest.json\); exp"
    ):
        model.generate([[4]])


@both
def test_no_tokenizer(make_bundle, edit_manifest, kind):
    bundle = make_bundle(kind)
    edit_manifest(bundle, lambda m: m["files"].pop("tokenizer.json"))
    model = load(bundle, provider="cpu")
    assert model.generate([[10]], max_new_tokens=1)
    with pytest.raises(InputError, match=r"has no tokenizer.json, so it takes no texts; pass token ids"):
        model.generate(["a"])


def test_unknown_words_pass_where_texts_are_not_words(make_bundle, edit_manifest):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(split_on_whitespace=False))
    assert load(bundle, provider="cpu").generate(["z"], max_new_tokens=1) == ["a"]


def test_teacher_forcing(copier):
    result = copier.run(input_ids=[[4, 5, 6, 0]], decoder_input_ids=[[1, 4, 5, 6]], attention_mask=[[1, 1, 1, 0]])
    assert set(result) == {"logits", "last_hidden_state"}
    assert result["logits"].shape == (1, 4, 12)
    assert result["logits"].argmax(-1).tolist() == [[4, 5, 6, 2]]
    assert result["last_hidden_state"].tolist() == [[[4], [5], [6], [0]]]


def test_teacher_forcing_without_a_mask(copier):
    ids = np.array([[4, 5], [6, 7]])
    masked = copier.run(ids, ids, np.ones_like(ids))
    np.testing.assert_array_equal(copier.run(ids, ids)["logits"], masked["logits"])


def test_the_mask_is_heeded(copier):
    result = copier.run([[9, 4, 5]], [[1, 4]], [[0, 1, 1]])
    assert result["logits"].argmax(-1).tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([[4, -1]], [[1]]), r"input_ids\[0, 1\] is -1; ids must be in \[0, 12\)"),
        (([[4]], [[1, 12]]), r"decoder_input_ids\[0, 1\] is 12; ids must be in \[0, 12\)"),
        (
            ([[4]], [[1], [1]]),
            r"decoder_input_ids has shape \(2, 1\), but must be .*, as the batch of what comes before",
        ),
        (([[4]], [[1]], [[1, 1]]), r"attention_mask has shape \(1, 2\), but must be .*axis 1 is 2 and must be 1"),
        (([[4]], [[1]], [[2]]), r"attention_mask\[0, 0\] is 2; values must be in \[0, 2\)"),
        (([[4]], [[1] * 9]), "decoder_sequence is 9, but this model takes at most 8"),
        (([[4] * 9], [[1]]), "sequence is 9, but this model takes at most 8"),
        (([[4]], None), "decoder_input_ids is None, but must be a numpy array or a list"),
    ],
)
def test_wrong_teacher_forcing(copier, arrays, message):
    with pytest.raises(InputError, match=message):
        copier.run(*arrays)


def test_teacher_forcing_of_no_rows(copier):
    none = np.empty((0, 3), np.int64)
    for mask in (None, none):
        result = copier.run(none, none[:, :2], mask)
        assert {name: (array.shape, str(array.dtype)) for name, array in result.items()} == {
            "logits": ((0, 2, 12), "float32"),
            "last_hidden_state": ((0, 3, 1), "float32"),
        }
    with pytest.raises(InputError, match=r"decoder_input_ids has shape \(1, 2\), .*axis 0 is 1 and must be 0"):
        copier.run(none, [[1, 1]])
    with pytest.raises(InputError, match="sequence must be at least 1"):
        copier.run(none[:, :0], none)


def test_decoder_run(counter):
    past = np.array([9, 8, 7, 0, 0, 0], np.float32)[None, None, :, None]
    feeds = {"past_key_values.0.key": past, "past_key_values.0.value": past}
    feeds |= {"input_ids": [[4, 5]], "attention_mask": [[1] * 5], "position_ids": [[3, 4]]}
    result = counter.run(**feeds)
    assert result["logits"].argmax(-1).tolist() == [[5, 6]]
    assert result["present.0.key"][0, 0, :, 0].tolist() == [9, 8, 7, 4, 5, 0]
    assert counter.run(**feeds | {"num_logits_to_keep": 1})["logits"].argmax(-1).tolist() == [[6]]
    assert counter.run(**feeds | {"num_logits_to_keep": 0})["logits"].argmax(-1).tolist() == [[5, 6]]
    gap = {"attention_mask": [[1, 0, 1, 1, 1]], "position_ids": [[2, 3]]}
    assert counter.run(**feeds | gap)["logits"].argmax(-1).tolist() == [[5, 6]]
    assert counter.run(**feeds | {"position_ids": [[4, 5]]})["logits"].argmax(-1).tolist() == [[3, 3]]  # none at 3
    # A past that is as long as what is read grows.
    short = {name: array[:, :, :3] for name, array in feeds.items() if name.startswith("past")}
    assert counter.run(**feeds | short)["present.0.key"][0, 0, :, 0].tolist() == [9, 8, 7, 4, 5]
    longer = np.zeros((1, 1, 9, 1), np.float32)
    with pytest.raises(InputError, match=r"past_key_values.0.value has shape .* axis 2 is 9 and must be 6"):
        counter.run(**feeds | {"past_key_values.0.value": longer})
    with pytest.raises(InputError, match=r"position_ids\[0, 1\] is 8; ids must be in \[0, 8\)"):
        counter.run(**feeds | {"position_ids": [[7, 8]]})
    with pytest.raises(InputError, match=r"num_logits_to_keep is 3, but must be in \[0, 2\], as there are 2 new"):
        counter.run(**feeds | {"num_logits_to_keep": 3})


def test_many_threads_get_the_same(copier):
    texts = ["abcdefgh"[n % 4 : 4 + n % 5] for n in range(48)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: copier.generate([text])[0], texts))
    assert together == [spaced(text[:6]) for text in texts]


def test_tasks(copier, counter):
    assert copier.tasks == ("generate", "translate")
    assert counter.tasks == ("generate",)
    for task in copier.tasks:
        assert getattr(copier, task)(["ab", "c"]) == ["a b", "c"]


def test_translate_takes_texts_alone(copier):
    assert copier.translate("abc", 2, batch_size=1) == ["a b"]
    assert copier.translate(text for text in ("a", "bc")) == ["a", "b c"]
    with pytest.raises(InputError, match=r"texts\[1\] must be a str, but is a list; generate\(\) takes token ids too"):
        copier.translate(["a", [4]])
