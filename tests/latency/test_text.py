"""Built-in English."""

from tfm.latency.text import english_sentences, english_words


def test_english_is_english_and_the_same_on_each_call() -> None:
    sentences = english_sentences(256)
    assert len(set(sentences)) == 256
    assert all(text[0].isupper() and text.endswith(".") for text in sentences)
    assert sentences == english_sentences(256)
    words = english_words(1000)
    assert len(set(words)) == 1000
    assert all(word.isascii() and word.islower() for word in words)
