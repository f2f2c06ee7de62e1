"""The bundle, run as an app runs it, against what its checkpoint's own library gave for the same texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import InputError
from tfm.runtime import Decoder, Encoder, EncoderDecoder, Perceiver

from .ask_generation import share_of_steps, share_that_agrees
from .ask_library import Asked, Reference
from .ask_perceived import share_that_is_written
from .fidelity import Fidelity

TASK_FLOORS = {
    # The worst of a dozen texts: what differs is the order of additions. MiniLM has 0.9999998.
    ("task cosine", "fp32"): 0.99999,
    ("task scores", "fp32"): 0.9999,
    ("task cosine", "fp16"): 0.9999,
    ("task scores", "fp16"): 0.99,
    # Letters of all that was heard, by how many would have to be changed.
    ("task letters", "fp32"): 0.999,
    ("task letters", "fp16"): 0.99,
    # Every token of every prompt, but for ties.
    ("task tokens", "fp32"): 1.0,
    # Of steps that go on from the library's own tokens. Chosen: the floors of top-1 less what a hundred steps may
    # differ by chance (two standard errors).
    ("task steps", "fp16"): 0.95,
    ("task steps", "int8"): 0.9,
    ("task steps", "int4"): 0.72,
    # Of a quantized graph what a user makes of it: the order of what is found, and the likeliest
    # label. Chosen; MiniLM's int8 has 0.997.
    ("task Spearman", "int8"): 0.95,
    ("task labels", "int8"): 0.9,
    ("task Spearman", "int4"): 0.85,
    ("task labels", "int4"): 0.8,
}
"""Least value of each measure, by precision."""

_TIE = 0.02
"""Two labels whose scores differ by less are one to the library: which of them is first says nothing."""

_ALONE = ", each alone, as padding changes what the library gives"

Scores = dict[tuple[int, Any], float]
"""(Place in a text, 0 of all of it; label, token or answer) → score."""


def compare_with_library(reference: Reference, bundle: Asked) -> list[Fidelity]:
    """Compare a bundle, opened in one precision, with what its checkpoint's library gave.

    Of fp32 and fp16 all that the library gives must be the same; of quantized graphs what is made of it: how texts are
    ordered by their similarity or their score, and which label is the likeliest. Texts that are generated are compared
    whole of fp32 alone: a token that differs makes all that follow it others, so rounded graphs are led along the
    library's own tokens, and each step counts by itself.
    """
    if not isinstance(bundle, Encoder):
        return [_tokens(reference, bundle) if bundle.precision == "fp32" else _steps(reference, bundle)]
    # Of sounds that nobody said: what a quantized model hears in speech, its outputs' cosine tells.
    if reference.task == "transcribe" and bundle.precision not in ("fp32", "fp16"):
        return []
    return [_encoded(reference, bundle)]


def _encoded(reference: Reference, bundle: Encoder) -> Fidelity:
    # All labels are asked for: an order that is right by chance would say less.
    call = getattr(bundle, reference.task)
    options: dict[str, Any] = {"long_texts": "cut", **({"batch_tokens": 1} if reference.alone else {})}
    if reference.task in ("classify", "classify_audio", "classify_images", "fill_mask"):
        options["top_k"] = None
    if reference.task == "classify_tokens":
        options["ignore_labels"] = ()
    try:
        found = call(list(reference.inputs), **options)
    except InputError as error:
        return _fidelity(reference, bundle, "task", 0.0, f"texts ({error})")
    if reference.task == "embed":
        return _embeddings(reference, bundle, found)
    if reference.task == "transcribe":
        return _letters(reference, bundle, [one["text"] for one in found])
    ours, theirs = [_scores(one) for one in found], [_scores(one) for one in reference.expected]
    return _labels(reference, bundle, ours, theirs)


def _tokens(reference: Reference, bundle: Decoder | EncoderDecoder) -> Fidelity:
    data = f"prompts in {len(reference.expected)} ways" if len(reference.expected) > 1 else "prompts, greedily"
    if isinstance(bundle, Perceiver):
        data = "sounds or images, greedily"
        value, count = share_that_is_written(bundle, reference.inputs, reference.expected)
    else:
        value, count = share_that_agrees(bundle, reference.inputs, reference.expected)
    return dataclasses.replace(_fidelity(reference, bundle, "task tokens", value, data), count=count)


def _steps(reference: Reference, bundle: Decoder | EncoderDecoder) -> Fidelity:
    [greedy] = reference.expected[:1]
    # Sounds and images are prepared as they are for a user; of texts it is the library's own ids.
    heard = isinstance(bundle, Perceiver)
    rows = bundle.perceive(list(reference.inputs)) if heard else [one.prompt for one in greedy.expected]
    value, count = share_of_steps(bundle, rows, greedy)
    found = _fidelity(reference, bundle, "task steps", value, "tokens of prompts continued greedily")
    return dataclasses.replace(found, count=count)


def _embeddings(reference: Reference, bundle: Encoder, found: npt.NDArray[Any]) -> Fidelity:
    expected = np.asarray(reference.expected)
    # As where pooling, or a layer behind it, was left out.
    if found.shape != expected.shape:
        return _fidelity(reference, bundle, "task cosine", 0.0, f"texts ({found.shape}, not {expected.shape})")
    if bundle.precision in ("fp32", "fp16"):
        lengths, others = (np.linalg.norm(rows, axis=1) for rows in (found, expected))
        cosines = (found * expected).sum(1) / np.maximum(lengths * others, 1e-12)
        # Of a vector that has another length, the ratio: that it was not normalized is no matter of direction.
        ratios = np.minimum(lengths, others) / np.maximum(np.maximum(lengths, others), 1e-12)
        return _fidelity(reference, bundle, "task cosine", float(np.minimum(cosines, ratios).min()), "texts")
    # Each two texts once, and none with itself.
    above = np.triu_indices(len(found), 1)
    ours, theirs = (bundle.similarity(rows, rows)[above] for rows in (found, expected.astype(np.float32)))
    return _fidelity(reference, bundle, "task Spearman", spearman(ours, theirs), "texts' similarities")


def _letters(reference: Reference, bundle: Encoder, texts: Sequence[str]) -> Fidelity:
    pairs = [(ours, theirs["text"]) for ours, theirs in zip(texts, reference.expected, strict=True)]
    changed = sum(edits(ours, theirs) for ours, theirs in pairs)
    value = 1 - changed / max(1, sum(len(theirs) for _, theirs in pairs))
    return _fidelity(reference, bundle, "task letters", value, "sounds")


def edits(one: str, other: str) -> int:
    """Count the letters that have to be put in, left out or exchanged to make one text of another (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            change = before + (letter != wanted)
            before, row[place] = row[place], min(change, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def _labels(reference: Reference, bundle: Encoder, ours: Sequence[Scores], theirs: Sequence[Scores]) -> Fidelity:
    """Compare scores, each text's by the name of what has it."""
    pairs = list(zip(ours, theirs, strict=True))
    # Other labels, or other tokens: there is no score to compare.
    if not all(one.keys() >= other.keys() for one, other in pairs):
        return _fidelity(reference, bundle, "task scores", 0.0, "texts (not the same labels or tokens)")
    scores = np.array([(one[name], score) for one, other in pairs for name, score in other.items()])
    if bundle.precision in ("fp32", "fp16"):
        off = np.abs(scores[:, 0] - scores[:, 1]) / np.maximum(1, np.abs(scores[:, 1]))
        return _fidelity(reference, bundle, "task scores", 1 - float(off.max()), "texts")
    if len(scores) == len(pairs):  # one label: what counts is the order of texts
        return _fidelity(reference, bundle, "task Spearman", spearman(*scores.T), "texts' scores")
    same = [_agree(one, other) for one, other in pairs if other]  # of a text without tokens nothing is labeled
    return _fidelity(reference, bundle, "task labels", float(np.mean(same)), "texts")


def _agree(ours: Scores, theirs: Scores) -> float:
    """The share of what is labeled, a text or each of its tokens, whose likeliest label is the library's."""
    same = []
    for place in {place for place, _ in theirs}:
        labels = [name for name in theirs if name[0] == place]
        best = max(theirs[name] for name in labels)
        # By the library's own score of what is chosen here: a tie is no disagreement.
        chosen = max((name for name in ours if name[0] == place), key=lambda name: ours[name])
        same.append(theirs.get(chosen, -np.inf) >= best - _TIE)
    return float(np.mean(same))


def _scores(result: Any) -> Scores:
    """Name each score of a result by the place that is labeled, 0 of a whole text, and the label or token there."""
    scores = {}
    for item in result if isinstance(result, list) else [result]:
        name = next(item[key] for key in ("token", "entity", "answer", "label") if key in item)
        scores[item.get("index", 0) if "entity" in item else 0, name] = float(item["score"])
    return scores


def spearman(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Give the correlation of the ranks of two series."""
    if len(one) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _fidelity(reference: Reference, bundle: Asked, measure: str, value: float, data: str) -> Fidelity:
    return Fidelity(
        precision=bundle.precision,
        measure=measure,
        value=value,
        # Of what could not even be compared, as where shapes differ, nothing less than 1 would do.
        floor=TASK_FLOORS.get((measure, bundle.precision), 1.0),
        count=len(reference.inputs),
        data=f"{data}{_ALONE if reference.alone else ''}, against {reference.library}",
    )
