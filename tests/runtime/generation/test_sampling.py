"""Draws against the distribution they come from, and against transformers' generate on the same uniform numbers."""

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import GenerationMixin

from tests.support.generation_models import V
from tfm.errors import InputError
from tfm.runtime.generation import (
    GenerationSettings,
    Sampler,
    draw_at,
    log_softmax,
    process_logits,
    processors,
    softmax,
)


def test_softmax_and_its_logarithm():
    """Against float64. Measured: probabilities 1.3e-7 apart, logarithms 3.9e-6 at values down to -69."""
    logits_BV = (np.random.default_rng(0).normal(size=(20, 5000)) * 8).astype(np.float32)
    logits_BV[:, ::7] = -np.inf
    exact_BV = scipy.special.log_softmax(logits_BV.astype(np.float64), axis=1)
    np.testing.assert_allclose(softmax(logits_BV), np.exp(exact_BV), rtol=0, atol=3e-7)
    np.testing.assert_allclose(log_softmax(logits_BV), exact_BV, rtol=0, atol=1e-5)
    assert softmax(logits_BV).dtype == log_softmax(logits_BV).dtype == np.float32


@pytest.mark.parametrize("function", [softmax, log_softmax])
@pytest.mark.parametrize("bad", [-np.inf, np.nan, np.inf])
def test_a_row_without_a_choice_is_an_error(function, bad):
    logits_BV = np.zeros((3, 4), np.float32)
    logits_BV[1] = bad
    with pytest.raises(InputError, match=r"the logits of row 1 have .*: no token can be chosen; forbid fewer"):
        function(logits_BV)


def test_draws_at_the_borders():
    probabilities_BV = np.array([[0, 0.25, 0, 0.75, 0]] * 5, np.float32)
    uniform_B = np.array([0, np.nextafter(0.25, 0), 0.25, 0.5, np.nextafter(1, 0)])
    np.testing.assert_array_equal(draw_at(probabilities_BV, uniform_B), [1, 1, 3, 3, 3])
    assert draw_at(probabilities_BV, uniform_B).dtype == np.int64


def test_the_greatest_uniform_finds_a_token_of_every_sum():
    """Sums are not exactly 1, and the last tokens may have no probability."""
    probabilities_BV = np.random.default_rng(0).random((2000, 7)).astype(np.float32)
    probabilities_BV[:, 5:] = 0
    assert draw_at(probabilities_BV, np.full(2000, np.nextafter(1, 0))).max() == 4


@pytest.mark.parametrize("left", [1, 2, 7, 50, 249, 250, 251, 900])
def test_few_tokens_of_many_are_drawn_as_if_all_were_added_up(left):
    random = np.random.default_rng(left)
    probabilities_BV = np.zeros((64, 1000), np.float32)
    for row_V in probabilities_BV:
        row_V[random.choice(1000, left, replace=False)] = random.random(left).astype(np.float32)
    uniform_B = np.append(random.random(62), [0, np.nextafter(1, 0)])
    sums_BV = np.cumsum(probabilities_BV, axis=1, dtype=np.float64)
    expected = [int((sums <= u * sums[-1]).sum()) for sums, u in zip(sums_BV, uniform_B, strict=True)]
    assert draw_at(probabilities_BV, uniform_B).tolist() == expected
    assert probabilities_BV[np.arange(64), expected].all()


def test_a_large_vocabulary_is_summed_exactly():
    """Its sum in float32 is off by far more than one token's probability."""
    size = 200_003
    uniform_B = np.random.default_rng(0).random(20)
    drawn_B = draw_at(np.full((20, size), 1 / size, np.float32), uniform_B)
    assert np.abs(drawn_B - uniform_B * size).max() <= 1


def test_draws_follow_the_distribution():
    probabilities_BV = softmax(np.random.default_rng(5).normal(size=(1, 20)).astype(np.float32))
    sampler = Sampler(1, [0])
    counts = np.bincount([sampler.draw(probabilities_BV)[0] for _ in range(20_000)], minlength=20)
    expected_V = probabilities_BV[0].astype(np.float64)
    assert scipy.stats.chisquare(counts, 20_000 * expected_V / expected_V.sum()).pvalue > 1e-3
    assert scipy.stats.chisquare(counts, np.full(20, 1000.0)).pvalue < 1e-6  # the test would see another one


def test_a_rows_draws_depend_on_its_place_and_the_seed_alone():
    probabilities_BV = np.full((6, 500), 1 / 500, np.float32)

    def draws(seed, rows):
        sampler = Sampler(seed, rows)
        return np.stack([sampler.draw(probabilities_BV[: len(rows)]) for _ in range(30)], 1)

    together = draws(3, range(6))
    np.testing.assert_array_equal(draws(3, [4]), together[4:5])
    np.testing.assert_array_equal(draws(3, [5, 0]), together[[5, 0]])
    assert len({tuple(row) for row in together.tolist()}) == 6
    assert (draws(4, range(6)) != together).any(1).all()
    assert (draws(None, range(6)) != draws(None, range(6))).any(1).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "marian"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.7, "top_k": 10},
        {"top_p": 0.8, "repetition_penalty": 1.3},
        {"min_p": 0.05, "temperature": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
    ],
)
def test_generate_draws_the_same_tokens(tiny_models, kind, values, monkeypatch):
    model, steps, ends = tiny_models[kind], 16, [2, 3]
    prompts = np.random.default_rng(1).integers(4, V, (5, 7))
    uniforms = np.random.default_rng(2).random((steps, 5))
    pending = list(uniforms)

    def inverse_cdf(probabilities, num_samples):
        assert num_samples == 1
        sums = torch.cumsum(probabilities.double(), 1)
        wanted = torch.tensor(pending.pop(0))[:, None] * sums[:, -1:]
        return (sums <= wanted).sum(1, keepdim=True)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "multinomial", inverse_cdf)
        theirs = GenerationMixin.generate(
            model,
            torch.tensor(prompts),
            attention_mask=torch.ones(5, 7, dtype=torch.int64),
            do_sample=True,
            max_new_tokens=steps,
            eos_token_id=ends,
            pad_token_id=0,
            **{"top_k": 0, **values},
        )
    assert len(pending) < steps  # it drew by ours

    decodes = model.config.is_encoder_decoder
    rows = [[0] if decodes else prompt.tolist() for prompt in prompts]
    start = len(rows[0])
    made = processors(
        GenerationSettings(do_sample=True, **values),
        prompt_lengths=[start] * 5,
        limits=[steps] * 5,
        eos_token_ids=ends,
        vocabulary=V,
    )
    for uniform_B in uniforms:
        with torch.no_grad():
            ids = torch.tensor(rows)
            logits = (model(torch.tensor(prompts), decoder_input_ids=ids) if decodes else model(ids)).logits
        drawn = draw_at(softmax(process_logits(made, rows, logits[:, -1].numpy())), uniform_B)
        rows = [[*row, token] for row, token in zip(rows, drawn.tolist(), strict=True)]
    texts = set()
    for ours, expected in zip(rows, theirs.tolist(), strict=True):
        new = expected[start:]
        length = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
        assert ours[start : start + length] == new[:length]
        texts.add(tuple(new))
    assert len(texts) == 5
