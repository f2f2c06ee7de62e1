"""Real English for models that read text, where nobody gives any."""

import re


def english_sentences(count: int) -> list[str]:
    """Take sentences from the documentation that every Python carries (`pydoc_data.topics`), the same on each call.

    Args:
        count: How many, at most; a Python stripped of its documentation has none.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    # Plain sentences: no code, no headings, nothing with symbols or digits.
    sentences = re.findall(r"(?<=\. )[A-Z][A-Za-z ,'()-]{20,300}\.(?= )", text)
    return list(dict.fromkeys(sentences))[:count]


def english_words(count: int) -> list[str]:
    """Take distinct lower-case words of those sentences, the same on each call."""
    words = re.findall(r"\b[a-z]{3,20}\b", " ".join(english_sentences(10_000)))
    return list(dict.fromkeys(words))[:count]
