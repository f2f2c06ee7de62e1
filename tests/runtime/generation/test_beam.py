"""Beam search against transformers' generate, with the same torch model behind both."""

import itertools

import numpy as np
import pytest
import torch

from tests.support.generation_models import KINDS, V, make
from tfm.errors import InputError
from tfm.runtime.generation import BeamSearch, GenerationSettings, log_softmax, process_logits, processors

SCORE_TOLERANCE = 1e-5  # relative above 1; measured over all comparisons of this file: 3.6e-6


def search(model, prompts, steps, ends, settings, limits=None):
    """Beam search with the model as the step, without a cache; at the first step one row per prompt."""
    decodes, beams = model.config.is_encoder_decoder, settings.num_beams
    starts = [[0] if decodes else prompt for prompt in prompts]
    limits = limits or [steps] * len(prompts)
    beam = BeamSearch(
        limits,
        num_beams=beams,
        eos_token_ids=ends,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        num_return_sequences=settings.num_return_sequences,
    )
    rows, sources = starts, prompts
    while not beam.done:
        made = processors(
            settings,
            prompt_lengths=[len(starts[0])] * len(rows),
            limits=[steps] * len(rows),
            eos_token_ids=ends,
            vocabulary=V,
        )
        with torch.no_grad():
            ids, encoded = torch.tensor(rows), torch.tensor(sources)
            logits = (model(encoded, decoder_input_ids=ids) if decodes else model(ids)).logits
        log_probs = process_logits(made, rows, log_softmax(logits[:, -1].numpy()))
        if len(rows) < len(prompts) * beams:
            rows = [row for row in rows for _ in range(beams)]
            sources = [source for source in sources for _ in range(beams)]
        tokens, parents = beam.advance(log_probs)
        assert (parents // beams == np.arange(len(rows)) // beams).all()
        rows = [[*rows[parent], int(token)] for token, parent in zip(tokens, parents, strict=True)]
        going = np.repeat(~beam.done_B, beams)
        new = np.array([row[len(starts[0]) :] for row in rows])
        np.testing.assert_array_equal(beam.tokens()[going], new[going])
    return beam.finish()


def generate(model, prompts, steps, ends, settings_values):
    torch.manual_seed(0)
    made = model.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.int64),
        max_new_tokens=steps,
        eos_token_id=ends or None,
        pad_token_id=0,
        do_sample=False,
        use_cache=False,  # as ours here: a cache's own rounding is not what is compared
        return_dict_in_generate=True,
        output_scores=True,
        **settings_values,
    )
    start = 1 if model.config.is_encoder_decoder else len(prompts[0])
    rows = [row[start : start + steps] for row in made.sequences.tolist()]
    lengths = (made.beam_indices >= 0).sum(1).tolist()
    texts = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    texts = [text[:-1] if text[-1] in ends else text for text in texts]
    return texts, made.sequences_scores.tolist()


def compare(model, prompts, steps, ends, values):
    ours = [text for texts in search(model, prompts, steps, ends, GenerationSettings(**values)) for text in texts]
    texts, scores = generate(model, prompts, steps, ends, values)
    assert [text for text, _ in ours] == texts
    worst = (np.abs(np.array([score for _, score in ours]) - scores) / np.maximum(1, np.abs(scores))).max()
    assert worst <= SCORE_TOLERANCE
    return texts


def random_prompts(seed):
    return np.random.default_rng(seed).integers(4, V, (3, 5)).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_stopping_rules(tiny_models, kind, early_stopping, length_penalty):
    lengths = set()
    for seed, (beams, ends) in enumerate([(2, [2]), (3, [2, 5, 9]), (4, [7, 8]), (5, list(range(2, 12)))]):
        values = {
            "num_beams": beams,
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
            "num_return_sequences": beams,
        }
        texts = compare(tiny_models[kind], random_prompts(seed), 12, ends, values)
        lengths |= {len(text) for text in texts}
    assert len(lengths) > 1  # some ended by themselves


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights(kind):
    for seed in range(1, 6):
        values = {"num_beams": 1 + seed, "num_return_sequences": 1 + seed // 2}
        compare(make(kind, seed), random_prompts(seed), 10, [2, 3, 4], values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 5},
        {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [10, 11]},
        {"forced_eos_token_id": 2, "forced_bos_token_id": 9},
    ],
)
def test_with_logits_processors(tiny_models, kind, values):
    compare(tiny_models[kind], random_prompts(4), 9, [2, 8], {"num_beams": 4, "num_return_sequences": 2, **values})


def test_without_end_tokens_and_with_one_step(tiny_models):
    compare(tiny_models["gpt2"], random_prompts(6), 6, [], {"num_beams": 3, "num_return_sequences": 3})
    compare(tiny_models["gpt2"], random_prompts(7), 1, [2], {"num_beams": 3, "num_return_sequences": 3})


def test_prompts_do_not_influence_each_other(tiny_models):
    """Also with a limit of its own for each."""
    model, prompts, limits = tiny_models["llama"], random_prompts(8), [3, 12, 7]
    settings = GenerationSettings(num_beams=4, num_return_sequences=4, length_penalty=0.5)
    together = search(model, prompts, 12, [2, 3, 4, 5], settings, limits)
    for prompt, limit, texts in zip(prompts, limits, together, strict=True):
        (alone,) = search(model, [prompt], limit, [2, 3, 4, 5], settings)
        assert [text for text, _ in alone] == [text for text, _ in texts]
        np.testing.assert_allclose([s for _, s in alone], [s for _, s in texts], rtol=0, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_enough_beams_it_is_exhaustive(length_penalty):
    """Over 3 tokens, one of which ends the text, and 3 steps, 27 beams leave nothing out: compare with all texts."""
    random = np.random.default_rng(3)
    tables = {}

    def log_probs(prefix):
        if prefix not in tables:
            tables[prefix] = log_softmax(random.normal(size=(1, 3)).astype(np.float32))[0]
        return tables[prefix]

    beam = BeamSearch(
        [3],
        num_beams=27,
        eos_token_ids=[0],
        length_penalty=length_penalty,
        early_stopping="never",
        num_return_sequences=5,
    )
    rows = [()] * 27
    while not beam.done:
        tokens, parents = beam.advance(np.stack([log_probs(row) for row in rows]))
        rows = [(*rows[parent], int(token)) for token, parent in zip(tokens, parents, strict=True)]
    (got,) = beam.finish()

    every = []
    for length in (1, 2, 3):
        for text in itertools.product(range(3), repeat=length):
            if 0 not in text[:-1] and (text[-1] == 0 or length == 3):
                total = sum(float(log_probs(text[:i])[token]) for i, token in enumerate(text))
                every.append((total / length**length_penalty, [t for t in text if t != 0]))
    every.sort(reverse=True)
    assert [text for text, _ in got] == [text for _, text in every[:5]]
    np.testing.assert_allclose([score for _, score in got], [score for score, _ in every[:5]], rtol=0, atol=1e-6)


def test_what_is_there_when_it_is_cut_short():
    beam = BeamSearch([9], num_beams=2, eos_token_ids=[0], num_return_sequences=2)
    first = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    tokens, parents = beam.advance(first)
    assert tokens.tolist() == [1, 2]
    assert parents.tolist() == [0, 0]
    assert not beam.done
    (texts,) = beam.finish()
    assert [text for text, _ in texts] == [[], [1]]
    np.testing.assert_allclose([score for _, score in texts], np.log([0.5, 0.3]), rtol=1e-6)


def test_nan_is_an_error_unless_the_prompt_is_done():
    beam = BeamSearch([1, 5], num_beams=2, eos_token_ids=[0])
    rows = np.zeros((4, 6), np.float32)
    rows[:, 0] = -9
    beam.advance(rows[:2])
    assert beam.done_B.tolist() == [True, False]
    rows[:2] = np.nan
    tokens, parents = beam.advance(rows)
    assert tokens[:2].tolist() == [0, 0]
    assert parents[:2].tolist() == [0, 1]
    rows[3, 5] = np.nan
    with pytest.raises(InputError, match="the log probabilities of prompt 1 hold NaN; check the model's outputs"):
        beam.advance(rows)


def test_too_small_a_vocabulary():
    beam = BeamSearch([5], num_beams=2, eos_token_ids=[0, 1])
    with pytest.raises(
        InputError, match="with 2 end tokens needs at least 3 tokens to choose from, but this model has 2"
    ):
        beam.advance(np.zeros((1, 2), np.float32))
