"""Inputs to verify with: random ones for every graph, and real English for models that read text."""

import re

import torch
from torch import Tensor

from tfm.model import TransformerConfig

from .graphs import Graph

_LONG = 256
"""Length, in tokens, of the longest sample of a model without a table of positions."""


def cases(graph: Graph, seed: int = 0) -> list[list[Tensor]]:
    """Make inputs that between them have ragged padding, one token, no past, a past, and the greatest length.

    Args:
        graph: The graph to make inputs for.
        seed: Seed of the random ids.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = min(graph.max_length.values(), default=64)
    if _has_no_table(graph):
        longest = min(longest, _LONG)
    lengths = [(3, 17, 0), (1, 1, 4), (2, 9, 3), (4, 5, 0), (1, longest, 0)]
    shapes = [
        (batch, min(length, longest), min(past, longest - min(length, longest))) for batch, length, past in lengths
    ]
    return [graph.sample(generator, batch, length, past) for batch, length, past in shapes]


def _has_no_table(graph: Graph) -> bool:
    """Whether positions are computed, so that nothing ends where a table of them would."""
    config = getattr(graph.model, "config", None)
    return isinstance(config, TransformerConfig) and config.positions in ("rotary", "relative", "alibi", "none")


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
    sentences = re.findall(r"(?<=\. )[A-Z][A-Za-z ,'()-]{20,300}\.(?= )", text)
    return list(dict.fromkeys(sentences))[:count]


def english_words(count: int) -> list[str]:
    """Take distinct lower-case words of those sentences, the same on each call."""
    words = re.findall(r"\b[a-z]{3,20}\b", " ".join(english_sentences(10_000)))
    return list(dict.fromkeys(words))[:count]
