"""Texts far longer than a model reads: not tokenized to their end, and yet to the same tokens."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tfm.errors import InputError, RunCancelledError, RunTimeoutError
from tfm.runtime import CancelToken, load
from tfm.runtime.control import Control
from tfm.runtime.inputs import tokenizer as module

MOST = 12
WORDS = [
    "hello",
    "worlds",
    "a",
    "unbelievable",
    "don't",
    "naïve",
    "北京",
    "e\u0301",
    "😀",
    "x" * 150,
    "aaaaaaa",
    "1234567",
]


def byte_pairs():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    train(made, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def sentence_piece_pairs():
    """As Llama's: no pre-tokenizer, so that merges may go on over the whole text."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    train(made, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"]))
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    train(
        made, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )
    return made


def word_piece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train(made, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"]))
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return made


def characters():
    made = Tokenizer(
        models.WordLevel({"<unk>": 0, **{c: i + 1 for i, c in enumerate("abcdehlorw ")}}, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return made


def train(made, trainer):
    trainer.show_progress = False
    made.train_from_iterator([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 20, trainer)


KINDS = [byte_pairs, sentence_piece_pairs, unigram, word_piece, characters]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for kind in KINDS:
        made[kind] = folder / f"{kind.__name__}.json"
        kind().save(str(made[kind]))
    return made


def text_of(words, joint, times):
    return joint.join(words * times)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS) | st.text("ab \n\u0301ß字", min_size=1, max_size=30), min_size=1, max_size=12),
    st.sampled_from([" ", "", "\n", "  "]),
    st.integers(100, 400),
)
def test_a_beginning_has_the_tokens_of_the_whole(files, kind, words, joint, times):
    """Of all that the model reads: special tokens, and places in the text, too."""
    text = text_of(words, joint, times)
    short = module.Tokenizer(files[kind], max_tokens=MOST)
    plain = Tokenizer.from_file(str(files[kind]))
    plain.enable_truncation(MOST)
    expected, found = plain.encode(text), short.encoding(text)
    assert (found.ids, found.offsets) == (expected.ids, expected.offsets)


def test_no_more_is_tokenized_than_is_read(files, monkeypatch):
    read = []
    real = module.Tokenizer._count
    monkeypatch.setattr(module.Tokenizer, "_count", lambda self, e: read.append(real(self, e)) or read[-1])
    module.Tokenizer(files[characters], max_tokens=MOST).encode(["hello world " * 100_000])
    assert read == [pytest.approx(1216, abs=16)]  # 16 characters for each of 12 + 64 tokens


def test_a_long_text_is_refused_at_once(copier):
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"the text 'aaa.*' has more tokens than the 8 that this model takes at most"):
        copier.generate("a" * (1 << 24))
    assert time.perf_counter() - start < 2  # it took 20 s to read them all


def test_words_of_one_token_are_read_on(files):
    """A word of more than 100 letters is one token, however long it is."""
    text = " ".join(["x" * 5000] * 40 + ["hello"])
    plain = Tokenizer.from_file(str(files[word_piece]))
    assert module.Tokenizer(files[word_piece], max_tokens=60).encode([text]) == [plain.encode(text).ids]


@pytest.mark.parametrize("kind", [characters, word_piece])
def test_a_timeout_while_texts_are_tokenized(files, kind):
    """Of a single text, too: between one beginning and the next, longer one."""
    tokenizer = module.Tokenizer(files[kind])
    with pytest.raises(RunTimeoutError):
        tokenizer.encode(["hello world " * 20_000], Control(timeout=0.001))
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        tokenizer.encode(["hello"], Control(token))


@pytest.mark.parametrize("call", ["generate", "stream", "embed"])
def test_a_timeout_holds_for_texts(make_bundle, call):
    model = load(make_bundle("encoder" if call == "embed" else "counter"), provider="cpu", threads=1)
    texts = "a" * 7 if call == "stream" else ["a" * 7] * 200_000
    start = time.perf_counter()
    with pytest.raises(RunTimeoutError, match=r"longer than its timeout of (0.1|0) s"):
        list(getattr(model, call)(texts, timeout=0 if call == "stream" else 0.1))
    assert time.perf_counter() - start < 3
