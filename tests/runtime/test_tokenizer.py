import sys

import pytest

from tfm.errors import BundleError, InputError, TextWarning
from tfm.runtime.inputs.tokenizer import Tokenizer


@pytest.fixture
def words(make_bundle):
    return make_bundle("encoder") / "tokenizer.json"


@pytest.fixture
def letters(make_bundle):
    return make_bundle("copier") / "tokenizer.json"


def test_padding_and_truncation_of_the_file_are_overridden(words):
    assert Tokenizer(words).encode(["a b c d e", "a"]) == [[1, 4, 5, 6, 7, 8, 2], [1, 4, 2]]


def test_truncation_keeps_the_ends(words):
    assert Tokenizer(words, max_tokens=4).encode(["a b c d e", "a"]) == [[1, 4, 5, 2], [1, 4, 2]]


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize("wrong", [PanicException("no entry found for key"), ValueError("no entry found for key")])
def test_whatever_tokenizers_raises(words, monkeypatch, wrong):
    class Panics:
        def __getattr__(self, name):
            raise wrong

    tokenizer = Tokenizer(words)
    monkeypatch.setattr(tokenizer, "_tokenizer", Panics())
    with pytest.raises(InputError, match=r"the text 'a' cannot be tokenized: no entry found for key"):
        tokenizer.encode(["a"])
    with pytest.raises(BundleError, match=r"cannot turn ids into a text: no entry found for key"):
        tokenizer.decode([[4]])


def test_ctrl_c_is_no_refusal(words, monkeypatch):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    tokenizer = Tokenizer(words)
    monkeypatch.setattr(tokenizer, "_tokenizer", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode(["a"])


def test_no_room(words):
    with pytest.raises(BundleError, match=r"tokenizer.json adds 2 special tokens, which leaves no room in 2 tokens"):
        Tokenizer(words, max_tokens=2)


def test_unknown_words_are_normal(words):
    assert Tokenizer(words).encode(["a zebra"]) == [[1, 4, 3, 2]]


def test_unknown_characters_are_refused(letters):
    tokenizer = Tokenizer(letters, refuse_unknown=True)
    assert tokenizer.encode(["abc"]) == [[4, 5, 6]]
    with pytest.raises(
        InputError, match=r"'ü' in the text 'abüc' \(at 2\) is not in the model's vocabulary; replace it"
    ):
        tokenizer.encode(["a", "abüc"])


def test_no_tokens(letters):
    with pytest.raises(InputError, match=r"the text '' has no tokens; leave it out"):
        Tokenizer(letters).encode([""])


def test_not_unicode(letters):
    with pytest.raises(InputError, match=r"the text 'a\\ud800' is not valid Unicode: '\\ud800' at 1 is half"):
        Tokenizer(letters).encode(["a\ud800"])


def test_decode_leaves_special_tokens_out(letters):
    assert Tokenizer(letters).decode([[1, 4, 5, 2], []]) == ["a b", ""]


def test_not_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer.json is not a tokenizer that tokenizers \S+ reads: "):
        Tokenizer(tmp_path / "tokenizer.json")


def test_not_installed(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BundleError, match=r"texts need the package tokenizers, .*: pip install 'tfm-export\[text\]'"):
        Tokenizer(words)


@pytest.mark.parametrize("text", [3, None, b"a", ("a", 3), ["a"]])
def test_no_text(words, text):
    with pytest.raises(InputError, match=r"a text must be a str, but is "):
        Tokenizer(words).encode(["a", text])


@pytest.mark.parametrize("text", ["ü" * 10**6, "a" * 10**6 + "\ud800", " " * 10**6])
def test_messages_are_short(letters, text):
    tokenizer = Tokenizer(letters, refuse_unknown=True)
    with pytest.raises(InputError) as caught:
        tokenizer.encode([text])
    assert len(str(caught.value)) < 300


def test_ids_that_the_tokenizer_lacks(letters):
    tokenizer = Tokenizer(letters)
    with pytest.warns(TextWarning, match=r"has no text for 99, 101, 102 and 1 others, and so none of it is"):
        assert tokenizer.decode([[4, 99, 5], [103, 101, 102]]) == ["a b", ""]


def test_a_pair_of_which_one_text_is_long(words):
    tokenizer = Tokenizer(words, max_tokens=9)
    for first, second in (("a b", "c " * 10**6), ("c d " * 10**6, "a"), ("a " * 10**5, "b " * 10**5 + "c")):
        whole = tokenizer._tokenizer.encode(first, second)
        assert tokenizer.pair(first, second).ids == whole.ids
        assert tokenizer.rows([(first, second)])[0].cut
    calls = []

    class Counts:
        def encode(self, *texts):
            calls.append(sum(map(len, texts)))
            return whole_tokenizer.encode(*texts)

        def __getattr__(self, name):
            return getattr(whole_tokenizer, name)

    whole_tokenizer, tokenizer._tokenizer = tokenizer._tokenizer, Counts()
    tokenizer.pair("a b", "c " * 10**6)
    assert max(calls) < 10_000
