"""Each processor against transformers' class of that name, on random logits and on logits made to be hard.

Everything is bit-equal but top-p and min-p, which compare a float32 sum or product that depends on how exp is rounded:
there, tokens within 1e-6 of the border may differ. Measured over 2,000 rows of 1,000 logits each: none did.
"""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from tfm.errors import InputError
from tfm.runtime.generation import GenerationSettings, process_logits, processors
from tfm.runtime.generation import logits as ours

B, V, S = 20, 1000, 12
ENDS = [2, 7]


def random_logits(seed: int, ties: bool = False) -> np.ndarray:
    random = np.random.default_rng(seed)
    logits_BV = (random.normal(size=(B, V)) * random.uniform(0.1, 8, (B, 1))).astype(np.float32)
    if ties:
        logits_BV = logits_BV.round(0)
    logits_BV[::3, random.choice(V, 50, replace=False)] = -np.inf
    return logits_BV


def random_rows(seed: int, length: int = S, below: int = V) -> np.ndarray:
    return np.random.default_rng(seed + 1).integers(0, below, (B, length))


def both(our, their, rows, logits_BV):
    expected = their(torch.tensor(rows), torch.tensor(logits_BV)).numpy()
    return our(rows.tolist(), logits_BV.copy()), expected


WORDS = [[5], [2], [9, 9], [1, 2, 3], [2, 7], [4, 5], [0, 5]]
CASES = {
    "repetition below 1": (ours.RepetitionPenalty(0.7), theirs.RepetitionPenaltyLogitsProcessor(0.7), V),
    "repetition": (ours.RepetitionPenalty(1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3), V),
    "repetition of ids without logits": (
        ours.RepetitionPenalty(1.3),
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        V + 9,
    ),
    "1-grams": (ours.NoRepeatNGram(1), theirs.NoRepeatNGramLogitsProcessor(1), V),
    "2-grams": (ours.NoRepeatNGram(2), theirs.NoRepeatNGramLogitsProcessor(2), 4),
    "3-grams": (ours.NoRepeatNGram(3), theirs.NoRepeatNGramLogitsProcessor(3), 3),
    "n-grams as long as the row": (ours.NoRepeatNGram(S), theirs.NoRepeatNGramLogitsProcessor(S), 1),
    "n-grams longer than the row": (ours.NoRepeatNGram(S + 1), theirs.NoRepeatNGramLogitsProcessor(S + 1), 1),
    "bad words": (ours.NoBadWords(WORDS, ENDS), theirs.NoBadWordsLogitsProcessor(WORDS, ENDS), 5),
    "min length, not yet": (ours.MinLength(np.full(B, S + 1), ENDS), theirs.MinLengthLogitsProcessor(S + 1, ENDS), V),
    "min length": (ours.MinLength(np.full(B, S), ENDS), theirs.MinLengthLogitsProcessor(S, ENDS), V),
    "min new tokens": (
        ours.MinLength(np.full(B, 8 + 5), ENDS),
        theirs.MinNewTokensLengthLogitsProcessor(8, 5, ENDS),
        V,
    ),
    "forced end": (ours.ForcedTokens(np.full(B, S), ENDS), theirs.ForcedEOSTokenLogitsProcessor(S + 1, ENDS), V),
    "forced end, later": (
        ours.ForcedTokens(np.full(B, S + 1), ENDS),
        theirs.ForcedEOSTokenLogitsProcessor(S + 2, ENDS),
        V,
    ),
    "forced start, too late": (ours.ForcedTokens(np.ones(B), [5]), theirs.ForcedBOSTokenLogitsProcessor(5), V),
    "suppressed": (ours.SuppressTokens([0, 3]), theirs.SuppressTokensLogitsProcessor([0, 3]), V),
    "suppressed at the beginning": (
        ours.SuppressAtLength(np.full(B, S), [0, 3]),
        theirs.SuppressTokensAtBeginLogitsProcessor([0, 3], S),
        V,
    ),
    "suppressed at the beginning, too late": (
        ours.SuppressAtLength(np.full(B, S - 1), [0, 3]),
        theirs.SuppressTokensAtBeginLogitsProcessor([0, 3], S - 1),
        V,
    ),
    "temperature": (ours.Temperature(0.7), theirs.TemperatureLogitsWarper(0.7), V),
    "top-k 1": (ours.TopK(1), theirs.TopKLogitsWarper(1), V),
    "top-k": (ours.TopK(50), theirs.TopKLogitsWarper(50), V),
    "top-k beyond the finite": (ours.TopK(990), theirs.TopKLogitsWarper(990), V),
    "top-k of all": (ours.TopK(2 * V), theirs.TopKLogitsWarper(2 * V), V),
    **{f"top-p {p}": (ours.TopP(p), theirs.TopPLogitsWarper(p), V) for p in (1e-4, 0.1, 0.5, 0.9, 0.999)},
    **{f"min-p {p}": (ours.MinP(p), theirs.MinPLogitsWarper(p), V) for p in (0.0, 1e-3, 0.1, 0.5, 1.0)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_transformers(case, ties):
    our, their, below = CASES[case]
    for seed in range(5):
        logits_BV = random_logits(seed, ties)
        got, expected = both(our, their, random_rows(seed, below=below), logits_BV)
        assert got.dtype == np.float32
        if ties and isinstance(our, ours.TopP):  # which of equal ones transformers keeps is its sort's choice
            np.testing.assert_array_equal(np.sort(got), np.sort(expected))
            got, expected = got.max(1), logits_BV.max(1)
        np.testing.assert_array_equal(got, expected)


def test_top_p_keeps_the_first_of_equals():
    logits_BV = np.array([[1, 3, 3, 3, 0], [2, 2, 2, 2, 2]], np.float32)
    kept = np.isfinite(ours.TopP(0.5)([[], []], logits_BV))
    np.testing.assert_array_equal(kept, [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]])


def test_the_cases_do_something():
    """Where nothing is changed, the comparison above shows nothing; only these leave all as it was."""
    idle = {"n-grams longer than the row", "min length", "forced end, later", "forced start, too late"}
    idle |= {"suppressed at the beginning, too late", "top-k of all", "min-p 0.0"}
    unchanged = set()
    for case, (our, _, below) in CASES.items():
        logits_BV = random_logits(0)
        if np.array_equal(our(random_rows(0, below=below).tolist(), logits_BV.copy()), logits_BV):
            unchanged.add(case)
    assert unchanged == idle


def test_forced_start_after_one_token():
    logits_BV = random_logits(0)
    our, their, _ = CASES["forced start, too late"]
    got, expected = both(our, their, random_rows(0, length=1), logits_BV)
    np.testing.assert_array_equal(got, expected)
    assert (got.argmax(1) == 5).all()


def test_rows_of_different_lengths_are_as_each_alone():
    """Where transformers pads, and counts the padding; so each row is compared alone, without padding."""
    logits_BV = random_logits(3)
    rows = [row[: 1 + i % S].tolist() for i, row in enumerate(random_rows(3, below=6))]
    lengths = np.array([len(row) for row in rows])
    for our, their in [
        (ours.RepetitionPenalty(1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        (ours.NoRepeatNGram(2), theirs.NoRepeatNGramLogitsProcessor(2)),
        (ours.NoBadWords(WORDS, ENDS), theirs.NoBadWordsLogitsProcessor(WORDS, ENDS)),
        (ours.MinLength(np.full(B, 6), ENDS), theirs.MinLengthLogitsProcessor(6, ENDS)),
        (ours.ForcedTokens(np.full(B, 4), ENDS), theirs.ForcedEOSTokenLogitsProcessor(5, ENDS)),
    ]:
        got = our(rows, logits_BV.copy())
        for row, logits_V, got_V in zip(rows, logits_BV, got, strict=True):
            np.testing.assert_array_equal(got_V, their(torch.tensor([row]), torch.tensor(logits_V[None])).numpy()[0])
        arrays = [np.array(row) for row in rows]
        np.testing.assert_array_equal(our(arrays, logits_BV.copy()), got)
    assert len(set(lengths)) == S


def test_the_order_is_that_of_generate(tiny_gpt2):
    """The list that transformers makes of the same settings, run on the same logits."""
    values = {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[5], [3, 4]],
        "min_new_tokens": 3,
        "min_length": 9,
        "forced_eos_token_id": 2,
        "suppress_tokens": [11, 12],
        "temperature": 0.6,
        "top_k": 30,
        "top_p": 0.8,
        "min_p": 0.02,
        "do_sample": True,
    }
    vocabulary, prompt = tiny_gpt2.config.vocab_size, 8
    random = np.random.default_rng(0)
    for new in range(6):
        config = tiny_gpt2.generation_config
        config.update(**values, max_length=prompt + 6, eos_token_id=ENDS, pad_token_id=0)
        tiny_gpt2._prepare_special_tokens(config, False, device="cpu")
        their = tiny_gpt2._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu")
        settings = GenerationSettings(**values, max_new_tokens=6)
        made = processors(
            settings, prompt_lengths=[prompt] * 4, limits=[6] * 4, eos_token_ids=ENDS, vocabulary=vocabulary
        )
        rows = random.integers(0, 6, (4, prompt + new))
        logits_BV = (random.normal(size=(4, vocabulary)) * 4).astype(np.float32)
        expected = their(torch.tensor(rows), torch.tensor(logits_BV)).numpy()
        np.testing.assert_array_equal(process_logits(made, rows.tolist(), logits_BV), expected)
        assert len(made) == len(their) - 1  # min_new_tokens and min_length are one of ours


def test_nothing_is_copied_where_there_is_nothing_to_do():
    made = processors(GenerationSettings(), prompt_lengths=[1], limits=[9], eos_token_ids=ENDS, vocabulary=V)
    logits_BV = random_logits(0)[:1]
    assert made == []
    assert process_logits(made, [[1]], logits_BV) is logits_BV


def test_the_callers_logits_stay_and_float16_is_widened():
    logits_BV = random_logits(0).astype(np.float16)
    before = logits_BV.copy()
    got = process_logits([ours.Temperature(0.5)], random_rows(0).tolist(), logits_BV)
    np.testing.assert_array_equal(logits_BV, before)
    np.testing.assert_array_equal(got, before.astype(np.float32) / np.float32(0.5))


def test_an_apps_processor_comes_before_the_temperature():
    def shift(tokens, logits_BV):
        assert [len(row) for row in tokens] == [2, 1]
        return logits_BV + np.float32(1)

    settings = GenerationSettings(do_sample=True, temperature=0.5, logits_processors=[shift])
    made = processors(settings, prompt_lengths=[2, 1], limits=[1, 1], eos_token_ids=[], vocabulary=3)
    got = process_logits(made, [[1, 2], [1]], np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(got, np.full((2, 3), 2, np.float32))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned shape None, NoneType"),
        (np.zeros((1, 2), np.float32), r"returned shape \(1, 2\), float32"),
        (np.zeros((2, 3), np.int64), r"returned shape \(2, 3\), int64"),
    ],
)
def test_what_an_apps_processor_returns_is_checked(returned, words):
    with pytest.raises(InputError, match=words + r"; return the logits as a float array of shape \(2, 3\)"):
        process_logits([lambda tokens, logits: returned], [[1], [1]], np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("processor", [ours.TopK(3), ours.TopP(0.5), ours.MinP(0.5), ours.RepetitionPenalty(2.0)])
def test_rows_where_everything_is_forbidden_stay_so(processor):
    logits_BV = np.full((2, 9), -np.inf, np.float32)
    assert (processor([[1], [2]], logits_BV) == -np.inf).all()
