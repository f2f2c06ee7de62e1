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


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("most", [9, 10])
@pytest.mark.parametrize(("first", "second"), [(2, 400), (400, 2), (300, 300), (300, 301), (301, 300), (80, 400)])
def test_a_pair_of_long_texts_is_cut_as_tokenizers_cuts_it(words, side, most, first, second):
    tokenizer = Tokenizer(words, max_tokens=most, truncation_side=side)
    texts = [" ".join(letters[n % 3] for n in range(count)) for letters, count in (("abc", first), ("def", second))]
    [row] = tokenizer.rows([texts])
    assert row.ids == tokenizer._tokenizer.encode(*texts).ids
    assert row.cut
    assert not tokenizer.rows([("a b", "c")])[0].cut


def test_what_is_cut_off_a_pair_takes_no_memory(words):
    """Every part of one text beside every part of the other would be 10**10 of them."""
    tokenizer = Tokenizer(words, max_tokens=9)
    assert len(tokenizer.pair("a " * 10**5, "b " * 10**5).overflowing) < 1000


def test_of_one_long_text_of_a_pair_only_the_beginning_is_read(words):
    tokenizer = Tokenizer(words, max_tokens=9)
    whole, lengths = tokenizer._tokenizer, []

    class Counts:
        def encode(self, *texts):
            lengths.append(sum(map(len, texts)))
            return whole.encode(*texts)

        def __getattr__(self, name):
            return getattr(whole, name)

    tokenizer._tokenizer = Counts()
    assert tokenizer.pair("a b", "c " * 10**6).ids == whole.encode("a b", "c " * 50).ids
    assert max(lengths) < 10_000
