"""What embeddings lose in a smaller form: int8, bits, and fewer dimensions, against the same texts' in float32.

The form is the runtime's, and right whatever a model is; what it costs is the model's own, so it is told, not judged.
Shapes: N texts, D dimensions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.bundle import TOKENIZER
from tfm.latency import english_sentences
from tfm.runtime import Encoder, embedding_ranges

from .fidelity import Fidelity, held_out
from .library import spearman

_TEXTS, _LEAST = 128, 40
"""So many texts are compared with each other; of fewer than the second, ten nearest ones would say little."""

_NEAREST = 10

Similarities = npt.NDArray[np.floating[Any]]
"""How near each two of N texts are, (N, N); a text by itself is the farthest."""


def measure_vector_forms(bundle: Encoder) -> list[Fidelity]:
    """Compare a bundle's embeddings in smaller forms with those in float32, each text's with all others'.

    Args:
        bundle: It embeds texts; opened in fp32, as what a form costs is hardly another in other graphs.

    Returns:
        For each form the correlation of the similarities' ranks, and the share of the ten nearest texts that stay among
        them; nothing where there are too few texts that the bundle reads.
    """
    texts = held_out(bundle, english_sentences(4 * _TEXTS))[:_TEXTS] if TOKENIZER in bundle.manifest.files else []
    if len(texts) < _LEAST:
        return []
    # Neither prompts nor what is cut has to do with the form.
    exact = bundle.embed(texts, prompt="", long_texts="cut")
    expected = _near(bundle, exact)
    above = np.triu_indices(len(texts), 1)
    results = []
    for form, rows in _forms(bundle, texts, exact).items():
        found = _near(bundle, rows)
        results += [
            # An order that is turned round is as bad as none.
            _told(f"Spearman, {form}", max(spearman(found[above], expected[above]), 0.0), len(texts)),
            _told(f"recall@{_NEAREST}, {form}", recall(found, expected), len(texts)),
        ]
    return results


def recall(found: Similarities, expected: Similarities, nearest: int = _NEAREST) -> float:
    """Give the share of each text's nearest ones that are among the nearest by another measure, on average."""
    ours, theirs = (np.argsort(-near_NN, axis=1, kind="stable")[:, :nearest] for near_NN in (found, expected))
    return float(np.mean([len(set(row) & set(other)) / nearest for row, other in zip(ours, theirs, strict=True)]))


def _forms(bundle: Encoder, texts: list[str], exact_ND: npt.NDArray[Any]) -> Mapping[str, npt.NDArray[Any]]:
    """Embed texts in each form, by its name, as numbers that similarities are of."""
    half = max(exact_ND.shape[1] // 2, 1)
    # The ranges are those of the texts themselves, as an index of them would be built.
    ranges_2D = embedding_ranges(exact_ND)
    int8 = bundle.embed(texts, prompt="", long_texts="cut", dtype="int8", ranges=ranges_2D).astype(np.float32)
    return {
        # As a vector database takes them, and with each dimension's range given back to it: 128 is the first step,
        # and a half its middle.
        "int8": int8,
        "int8 restored": ranges_2D[0] + (int8 + 128.5) * (ranges_2D[1] - ranges_2D[0]) / 255,
        "binary": _bits(bundle.embed(texts, prompt="", long_texts="cut", dtype="binary")),
        f"{half} dimensions": bundle.embed(texts, prompt="", long_texts="cut", dimensions=half),
    }


def _bits(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Spell packed bits out as -1 and 1, whose products count the bits that are equal, as Hamming's distance does."""
    return np.unpackbits((rows.astype(np.int16) + 128).astype(np.uint8), axis=1).astype(np.float32) * 2 - 1


def _near(bundle: Encoder, rows_ND: npt.NDArray[Any]) -> Similarities:
    near_NN: Similarities = bundle.similarity(rows_ND, rows_ND).copy()
    np.fill_diagonal(near_NN, -np.inf)
    return near_NN


def _told(measure: str, value: float, count: int) -> Fidelity:
    data = "English sentences, against float32"
    return Fidelity(precision="fp32", measure=measure, value=value, floor=0.0, count=count, data=data)
