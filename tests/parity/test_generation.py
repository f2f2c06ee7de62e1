"""Bundles of tiny random models generate what transformers' generate does of the same checkpoint, token for token.

Transformers takes prompts one at a time; ours come in one batch, ragged. Both compute in float32, in which rounding
could decide between two tokens only where their scores are equal to some seven digits; no case here has such.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.generation_models import KINDS, V
from tests.support.tiny_bundles import EOS, PAD
from tfm.runtime import load
from tfm.runtime.generation import Sampler, generator

NEW = 16
ENDS = {"gpt2": [9, 11], "llama": [20, 28], "t5": [10, 35], "marian": [17, 29]}
"""More end tokens: with them some texts of each model end early, and in different steps."""

PROMPTS = [
    np.random.default_rng(seed).integers(4, V, length).tolist() for seed, length in enumerate((1, 13, 2, 5, 6, 8, 3))
]

GREEDY: dict[str, dict[str, Any]] = {
    "min_new_tokens": {"min_new_tokens": 9},
    "min_length": {"min_length": 11},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[14], [4], [25, 28], [19, 19], [18, 13], [33]]},
    "suppress": {"suppress_tokens": [4, 16, 19, 35, 37]},
    "forced_bos": {"forced_bos_token_id": 11},
    "forced_eos": {"forced_eos_token_id": EOS, "suppress_tokens": [5]},
    "all": {
        "min_new_tokens": 4,
        "repetition_penalty": 0.9,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[33], [4, 14]],
        "forced_bos_token_id": 12,
        "forced_eos_token_id": EOS,
    },
}

BEAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "short": {"length_penalty": -1.0},
    "long": {"length_penalty": 2.0},
    "early": {"early_stopping": True, "num_return_sequences": 4},
    "never": {"early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 3},
    "processors": {
        "min_new_tokens": 5,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[33], [25, 28], [19, 19]],
        "forced_bos_token_id": 11,
        "forced_eos_token_id": EOS,
    },
}

SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_k": {"temperature": 0.7, "top_k": 10},
    "top_p": {"top_p": 0.8, "repetition_penalty": 1.3},
    "min_p": {"min_p": 0.05, "temperature": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
}


class Pair:
    """A bundle, and transformers' model of the same checkpoint."""

    def __init__(self, kind: str, bundle: Any, model: Any) -> None:
        self.ours, self._model, self._ends = load(bundle, provider="cpu", threads=1), model, [EOS, *ENDS[kind]]
        self.stop = {"stop_token_ids": ENDS[kind]}

    def generate(self, prompts: list[list[int]], **settings: Any) -> Any:
        return self.ours.generate(prompts, max_new_tokens=NEW, **self.stop, **settings)

    def theirs(self, prompt: list[int], **settings: Any) -> list[list[int]]:
        """Per text its new tokens, without the one that ended it."""
        ids_1S = torch.tensor([prompt])
        made_NT = self._model.generate(
            ids_1S,
            attention_mask=torch.ones_like(ids_1S),
            max_new_tokens=NEW,
            eos_token_id=self._ends,
            pad_token_id=PAD,
            **{"do_sample": False, **settings},
        )
        start = 1 if self._model.config.is_encoder_decoder else len(prompt)
        return [self._until_end(row[start:]) for row in made_NT.tolist()]

    def _until_end(self, row: list[int]) -> list[int]:
        return row[: next((i for i, token in enumerate(row) if token in self._ends), len(row))]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, generation_bundle: Any) -> Pair:
    return Pair(request.param, *generation_bundle(request.param))


@pytest.fixture(scope="module")
def greedy(pair: Pair) -> list[list[int]]:
    """What the bundle gives where no setting says otherwise."""
    return pair.generate(PROMPTS)


def test_greedy(pair: Pair, greedy: list[list[int]]) -> None:
    assert greedy == [pair.theirs(prompt)[0] for prompt in PROMPTS]
    lengths = {len(row) for row in greedy}
    assert NEW in lengths
    assert len(lengths) >= 3  # so that rows leave the batch while others go on


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_with_processors(pair: Pair, greedy: list[list[int]], case: str) -> None:
    ours = pair.generate(PROMPTS, **GREEDY[case])
    assert ours == [pair.theirs(prompt, **GREEDY[case])[0] for prompt in PROMPTS]
    assert ours != greedy  # the setting does something


@pytest.mark.parametrize("case", BEAMS)
def test_beams(pair: Pair, greedy: list[list[int]], case: str) -> None:
    settings = {"num_beams": 4, **BEAMS[case]}
    ours = pair.generate(PROMPTS, **settings)
    expected = [pair.theirs(prompt, **settings) for prompt in PROMPTS]
    assert ours == (expected if "num_return_sequences" in settings else [texts for [texts] in expected])
    assert ours != greedy


def test_the_cases_of_beams_differ(pair: Pair) -> None:
    """By the length penalty, by when the search ends, by the processors."""
    best = {case: pair.generate(PROMPTS, num_beams=4, **{**BEAMS[case], "num_return_sequences": 4}) for case in BEAMS}
    assert best["short"] != best["long"]
    assert len({str(texts) for texts in best.values()}) >= 4


@pytest.fixture
def uniforms(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """Uniform numbers, per prompt one for every step; both sides draw by inverse CDF of these."""
    numbers = np.random.default_rng(3).random((len(PROMPTS), NEW))

    class Fixed(Sampler):
        def __init__(self, seed: int | None, rows: Any) -> None:
            self._generators = [Column(numbers[row].tolist()) for row in rows]

    monkeypatch.setattr(generator, "Sampler", Fixed)

    def draw_theirs(place: int) -> list[float]:
        pending = numbers[place].tolist()

        def inverse_cdf(probabilities_1V: torch.Tensor, num_samples: int) -> torch.Tensor:
            sums_1V = torch.cumsum(probabilities_1V.double(), 1)
            return (sums_1V <= pending.pop(0) * sums_1V[:, -1:]).sum(1, keepdim=True)

        monkeypatch.setattr(torch, "multinomial", inverse_cdf)
        return pending

    return draw_theirs


class Column:
    """Stands for a row's generator."""

    def __init__(self, numbers: list[float]) -> None:
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


@pytest.mark.parametrize("case", SAMPLING)
def test_sampling(pair: Pair, uniforms: Callable[[int], list[float]], case: str) -> None:
    settings = {"do_sample": True, **SAMPLING[case]}
    ours = pair.generate(PROMPTS, **settings)
    for place, prompt in enumerate(PROMPTS):
        pending = uniforms(place)
        assert pair.theirs(prompt, **{"top_k": 0, **settings}) == [ours[place]]
        assert NEW - len(pending) == min(len(ours[place]) + 1, NEW)  # one number for every token, the end included
    assert len({tuple(row) for row in ours}) > len(PROMPTS) // 2


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True, "seed": 7, "num_return_sequences": 2}],
    ids=["greedy", "beams", "sampling"],
)
def test_in_one_batch_as_one_by_one(pair: Pair, settings: dict[str, Any]) -> None:
    together = pair.generate(PROMPTS, **settings)
    assert pair.generate(PROMPTS, batch_size=1, **settings) == together
    assert pair.generate(PROMPTS, batch_size=3, **settings) == together
    assert len({str(texts) for texts in together}) > 1
