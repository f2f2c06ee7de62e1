"""Answers to questions, against Hugging Face's pipeline where it has one, and a reading of every span by hand.

transformers 5 has no pipeline for it any more; 4 has.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED, LONGEST
from tfm.errors import InputError

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

HAS_PIPELINE = int(transformers.__version__.partition(".")[0]) < 5
PAIRS = [
    ("who lives in paris?", "the capital of france is paris, and what it does not say: who walks in a small town."),
    ("what is new?", "new york. " * 30),
    ("who", "é 你 😀 zzz lives"),
    ("is a small town not what it does say?", "who lives in paris? the walkers, the town's, new york; a walk. " * 4),
]
FAMILIES = COMPARED["answer"][2]


def by_hand(both: Any, question: str, context: str, *, none: bool, most: int = 15, stride: int = 24) -> dict[str, Any]:
    """Look at every span of every part of a context, one by one."""
    found: dict[str, dict[str, Any]] = {}
    parts = both.words(
        question, context, truncation="only_second", max_length=LONGEST, stride=stride,
        return_overflowing_tokens=True, return_token_type_ids=True,
    )  # fmt: skip
    names = [name for name in both.words.model_input_names if name in parts]
    nones = []
    for number, ids in enumerate(parts["input_ids"]):
        feeds = {name: torch.tensor([parts[name][number]]) for name in names}
        with torch.no_grad():
            output = both.theirs(**feeds)
        inside = np.array(parts.sequence_ids(number)) == 1
        candidates = np.flatnonzero(inside | (np.array(ids) == both.words.cls_token_id))
        shares = []
        for logits in (output.start_logits[0], output.end_logits[0]):
            powers = {place: float(np.exp(np.float64(logits[place]))) for place in candidates}
            total = sum(powers.values())
            shares.append({place: power / total for place, power in powers.items()})
        nones.append(shares[0][0] * shares[1][0])
        spans = [(shares[0][a] * shares[1][b], a, b) for a in candidates for b in candidates if a and a <= b < a + most]
        encoding = parts[number]
        for score, a, b in sorted(spans, reverse=True)[:12]:
            start = encoding.word_to_chars(encoding.token_to_word(a), 1)[0]
            end = encoding.word_to_chars(encoding.token_to_word(b), 1)[1]
            answer = found.setdefault(context[start:end].lower(), {"score": 0.0, "start": start, "end": end})
            answer["score"] += score
    answers = [*found.values()]
    if none:
        answers.append({"score": min(nones), "start": 0, "end": 0})
    return max(answers, key=lambda answer: answer["score"])


@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_by_hand(open_both: Callable[..., Any], family: str, none: bool) -> None:
    both = open_both(family, "ForQuestionAnswering")
    assert both.ours.tasks == ("answer",)
    found = both.ours.answer(PAIRS, handle_impossible_answer=none)
    for (question, context), [answer] in zip(PAIRS, found, strict=True):
        expected = by_hand(both, question, context, none=none)
        np.testing.assert_allclose(answer["score"], expected["score"], rtol=0, atol=1e-5)
        assert (answer["start"], answer["end"]) == (expected["start"], expected["end"])
        assert answer["answer"] == context[answer["start"] : answer["end"]]


@pytest.mark.skipif(not HAS_PIPELINE, reason="needs the question-answering pipeline of transformers before 5")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 4},
        {"top_k": 3, "handle_impossible_answer": True},
        {"align_to_words": False, "top_k": 2},
        {"max_answer_len": 2, "max_seq_len": 24, "doc_stride": 4},
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_pipeline(open_both: Callable[..., Any], family: str, options: dict[str, Any]) -> None:
    both = open_both(family, "ForQuestionAnswering")
    theirs = transformers.pipeline("question-answering", model=both.theirs, tokenizer=both.words)
    for question, context in PAIRS:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array__ implementation")  # its own, of numpy 2
            expected = theirs(question=question, context=context, **options)
        [found] = both.ours.answer((question, context), **options)
        for one, other in zip(found, expected if isinstance(expected, list) else [expected], strict=True):
            np.testing.assert_allclose(one["score"], other["score"], rtol=0, atol=1e-5)
            assert (one["start"], one["end"], one["answer"]) == (other["start"], other["end"], other["answer"])


def test_limits_of_an_answer(open_both: Callable[..., Any]) -> None:
    both = open_both("bert", "ForQuestionAnswering")
    question, context = PAIRS[0]
    for most in (1, 3):
        [[found]] = both.ours.answer((question, context), max_answer_len=most)
        np.testing.assert_allclose(
            found["score"], by_hand(both, question, context, none=False, most=most)["score"], atol=1e-5
        )
    several = both.ours.answer([(question, context)], top_k=5)[0]
    assert [answer["score"] for answer in several] == sorted((answer["score"] for answer in several), reverse=True)
    assert len({answer["answer"] for answer in several}) == 5


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (["who?"], {}, r"inputs\[0\] must be a question and its context, but is 'who\?'"),
        ([("who?", 3)], {}, r"inputs\[0\] must be a question and its context, but is \('who\?', 3\)"),
        (
            [("a", "b"), ("new york " * 40, "a")],
            {},
            r"inputs\[1\]: of 48 tokens the question leaves no room for a part",
        ),
        ([("a", "b")], {"max_seq_len": 99}, r"max_seq_len is 99, but this model reads at most 48 tokens"),
        ([("a", "b")], {"doc_stride": 49}, r"doc_stride is 49, and must not be more than max_seq_len, 48"),
        ([("a", "b")], {"top_k": 0}, r"top_k must be an integer of at least 1, but is 0"),
        ([("a", "b")], {"max_answer_len": 0}, r"max_answer_len must be an integer of at least 1, but is 0"),
    ],
)
def test_refusals(open_both: Callable[..., Any], pairs: Any, options: dict[str, Any], message: str) -> None:
    ours = open_both("bert", "ForQuestionAnswering").ours
    with pytest.raises(InputError, match=message):
        ours.answer(pairs, **options)
