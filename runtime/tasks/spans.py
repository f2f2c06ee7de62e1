"""Answers to a question that stand in a text, as Hugging Face's question-answering pipeline finds them.

Shapes: S sequence.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ..inputs.checks import Array
from ..inputs.row import Row
from .base import Task

_LEAST = -10000.0
"""Logit of a token that is not of the context."""


class Answer(TypedDict):
    """An answer: its probability, where in the context it is, and itself; "" from 0 to 0: there is none."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True, kw_only=True)
class SpanSettings:
    """Which spans are answers.

    Attributes:
        top_k: How many are given.
        most_tokens: Of an answer.
        may_be_none: Whether that there is none is an answer too.
        whole_words: Whether an answer is extended to the ends of its words.
    """

    top_k: int
    most_tokens: int
    may_be_none: bool
    whole_words: bool


@dataclass(frozen=True)
class _Span:
    """A span of tokens of one part of a context."""

    encoding: Any
    first: int
    last: int
    score: float


@dataclass(frozen=True)
class PartSpans:
    """What one part of a context gives: its best spans, and the probability that the answer is not in it."""

    spans: list[_Span]
    none: float


def span_finding(settings: SpanSettings, context: int, cls_id: int | None) -> Task[PartSpans]:
    """Make the task of finding answers in one part of a context.

    Args:
        settings: Which spans are answers.
        context: Which text of the pair it is, 0 or 1.
        cls_id: Id of the token that says that there is no answer.
    """

    def finish(item: Any, row: Row, values: Mapping[str, Array]) -> PartSpans:
        ids = np.array(row.ids)
        # Of a question and of special tokens no answer is made.
        may_S = np.array([text == context for text in row.encoding.sequence_ids])
        # But the first token says that there is none, where a model was trained to.
        if cls_id is not None:
            may_S |= ids == cls_id
        start_S, end_S = (_shares(values[name][: len(ids)], may_S) for name in ("start_logits", "end_logits"))
        # Taken before it is put out of the running, as in the pipeline.
        none = float(start_S[0] * end_S[0])
        start_S[0] = end_S[0] = 0.0
        # Some fall together when they are extended to whole words.
        count = 2 * settings.top_k + 10 if settings.whole_words else settings.top_k
        found = _best_spans(start_S, end_S, count, settings.most_tokens)
        # Where a context has few tokens, spans of nothing fill the list.
        spans = [_Span(row.encoding, *span) for span in found if may_S[span[0]] and may_S[span[1]]]
        return PartSpans(spans, none)

    return Task(("start_logits", "end_logits"), finish, keep=True)


def _shares(logits_S: Array, may_S: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Softmax over the tokens that an answer may begin or end with."""
    # In float32 as the pipeline: among spans that all but tie, the order is then its order.
    masked_S = np.where(may_S, logits_S.astype(np.float32), np.float32(_LEAST))
    # Less the greatest, so that no power overflows.
    powers_S = np.exp(masked_S - masked_S.max())
    shares: npt.NDArray[np.float32] = powers_S / powers_S.sum()
    return shares


def _best_spans(
    start_S: npt.NDArray[np.float32], end_S: npt.NDArray[np.float32], count: int, most_tokens: int
) -> list[tuple[int, int, float]]:
    """List the likeliest spans: first token, last token, probability."""
    # (S, S): from a row's token to a column's, none that ends before it begins, or is too long.
    scores = np.tril(np.triu(np.outer(start_S, end_S)), most_tokens - 1).reshape(-1)
    # In numpy's own order of ties, which is the pipeline's.
    if count == 1:
        order = np.array([scores.argmax()])
    elif len(scores) < count:
        order = np.argsort(-scores)
    else:
        order = np.argpartition(-scores, count)[:count] if len(scores) > count else np.arange(len(scores))
        order = order[np.argsort(-scores[order])]
    firsts, lasts = np.unravel_index(order, (len(start_S), len(start_S)))
    return [(int(a), int(b), float(scores[place])) for a, b, place in zip(firsts, lasts, order, strict=True)]


def best_answers(context: str, side: int, parts: Sequence[PartSpans], settings: SpanSettings) -> list[Answer]:
    """Choose among the spans of all parts of a context.

    Args:
        context: The text.
        side: Which text of the pair it is.
        parts: What each part of it gave.
        settings: Which spans are answers.
    """
    answers: list[Answer] = []
    for span in (span for part in parts for span in part.spans):
        start, end = _characters(span, side, settings.whole_words)
        text = context[start:end]
        # One answer may be found in two parts, or by two spans that grow into the same words.
        same = next((answer for answer in answers if answer["answer"].lower() == text.lower()), None)
        if same is not None:
            same["score"] += span.score
        else:
            answers.append({"score": span.score, "start": start, "end": end, "answer": text})
    # It is not in any part: the least sure of them decides.
    if settings.may_be_none:
        answers.append({"score": min(part.none for part in parts), "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[: settings.top_k]


def _characters(span: _Span, side: int, whole_words: bool) -> tuple[int, int]:
    """Tell where in the context a span is."""
    encoding = span.encoding
    if whole_words:
        first, last = encoding.token_to_word(span.first), encoding.token_to_word(span.last)
        # The first token, which says that there is none, is of no word; nor do all tokenizers know words.
        if first is not None and last is not None:
            with contextlib.suppress(TypeError):
                return (
                    encoding.word_to_chars(first, sequence_index=side)[0],
                    encoding.word_to_chars(last, sequence_index=side)[1],
                )
    return encoding.offsets[span.first][0], encoding.offsets[span.last][1]
