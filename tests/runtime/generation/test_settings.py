"""Every setting is checked, and one that would have no effect is refused."""

import dataclasses
import re

import numpy as np
import pytest

from tfm.errors import InputError
from tfm.runtime.generation import GenerationSettings, processors

SAMPLING = {"do_sample": True}
BEAMS = {"num_beams": 3}
REFUSED = [
    ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, or None, but is 0"),
    ({"max_new_tokens": True}, "max_new_tokens must be an integer of at least 1, or None, but is True"),
    ({"min_new_tokens": None}, "min_new_tokens must be an integer of at least 0, but is None"),
    ({"num_beams": 2.0}, "num_beams must be an integer of at least 1, but is 2.0"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be an integer of at least 0, but is -1"),
    (SAMPLING | {"seed": -1}, "seed must be an integer of at least 0, or None, but is -1"),
    (
        SAMPLING | {"temperature": 0},
        "temperature must be a number in [0.001, 1000], but is 0; for the likeliest token, leave do_sample out",
    ),
    (SAMPLING | {"temperature": float("nan")}, "temperature must be a number in [0.001, 1000], but is nan"),
    (SAMPLING | {"top_p": 1.01}, "top_p must be a number in (0, 1], but is 1.01"),
    (SAMPLING | {"top_p": "a"}, "top_p must be a number in (0, 1], but is 'a'"),
    (SAMPLING | {"min_p": -0.1}, "min_p must be a number in [0, 1], or None, but is -0.1"),
    ({"repetition_penalty": 0}, "repetition_penalty must be a number in [0.001, 1000], but is 0"),
    (BEAMS | {"length_penalty": 6}, "length_penalty must be a number in [-5.0, 5.0], but is 6"),
    (BEAMS | {"early_stopping": "ever"}, "early_stopping must be True, False or 'never', but is 'ever'"),
    (BEAMS | {"early_stopping": 1}, "early_stopping must be True, False or 'never', but is 1"),
    ({"do_sample": 1}, "do_sample must be True or False, but is 1"),
    ({"bad_words_ids": [1]}, "bad_words_ids[0] must be a sequence of token ids, but is 1"),
    ({"bad_words_ids": [[1], []]}, "bad_words_ids[1] is empty; leave it out"),
    ({"bad_words_ids": [[1, -1]]}, "bad_words_ids[0][1] must be an integer of at least 0, but is -1"),
    ({"suppress_tokens": 5}, "suppress_tokens must be a sequence of token ids, but is 5"),
    ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens[0] must be an integer of at least 0, but is -1"),
    ({"stop_token_ids": "12"}, "stop_token_ids must be a sequence of token ids, but is '12'"),
    ({"forced_bos_token_id": [1]}, "forced_bos_token_id must be an integer of at least 0, or None, but is [1]"),
    ({"forced_eos_token_id": []}, "forced_eos_token_id is empty; leave it out, or None"),
    ({"stop": ["a", ""]}, "stop[1] must be a string that is not empty, but is ''"),
    ({"stop": 3}, "stop must be a sequence of strings, but is 3"),
    ({"logits_processors": [len, 1]}, "logits_processors[1] must be callable, but is 1"),
    (
        {"temperature": 0.5},
        "temperature=0.5 has no effect without do_sample=True; set do_sample=True, or leave temperature out",
    ),
    ({"top_k": 5}, "top_k=5 has no effect without do_sample=True; set do_sample=True, or leave top_k out"),
    ({"top_p": 0.5}, "top_p=0.5 has no effect without do_sample=True; set do_sample=True, or leave top_p out"),
    ({"min_p": 0.5}, "min_p=0.5 has no effect without do_sample=True; set do_sample=True, or leave min_p out"),
    ({"seed": 0}, "seed=0 has no effect without do_sample=True; set do_sample=True, or leave seed out"),
    (
        {"length_penalty": 2},
        "length_penalty=2 has no effect without num_beams of at least 2; set num_beams, or leave length_penalty out",
    ),
    (
        {"early_stopping": True},
        "early_stopping=True has no effect without num_beams of at least 2; set num_beams, or leave early_stopping out",
    ),
    (BEAMS | SAMPLING, "do_sample=True and num_beams > 1 exclude each other; leave one of them out"),
    (BEAMS | {"stop": "a"}, "stop is not available with num_beams > 1; use stop_token_ids, or num_beams=1"),
    (
        BEAMS | {"num_return_sequences": 4},
        "num_return_sequences=4 is more than num_beams=3, the number of texts there are to choose from; "
        "raise num_beams, or set do_sample=True",
    ),
    (
        {"min_new_tokens": 5, "max_new_tokens": 4},
        "min_new_tokens=5 is more than max_new_tokens=4; lower it",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(values, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        GenerationSettings(**values)


def test_every_setting_is_refused_when_it_is_nonsense():
    for field in dataclasses.fields(GenerationSettings):
        with pytest.raises(InputError, match=f"^{field.name}"):
            GenerationSettings(**{field.name: 1.5j})


def test_defaults_change_nothing():
    made = processors(GenerationSettings(), prompt_lengths=[3], limits=[4], eos_token_ids=[1], vocabulary=9)
    sampling = processors(
        GenerationSettings(do_sample=True), prompt_lengths=[3], limits=[4], eos_token_ids=[1], vocabulary=9
    )
    assert made == sampling == []


def test_what_means_nothing_is_accepted():
    GenerationSettings(temperature=1, top_k=0, top_p=1, length_penalty=1, num_return_sequences=1, seed=None)
    GenerationSettings(do_sample=True, num_return_sequences=9)


def test_sequences_become_tuples():
    settings = GenerationSettings(
        stop="end", bad_words_ids=[np.array([1, 2])], forced_eos_token_id=np.int64(3), suppress_tokens=[4]
    )
    assert settings.stop == ("end",)
    assert settings.bad_words_ids == ((1, 2),)
    assert settings.forced_eos_token_id == (3,)
    assert dataclasses.replace(settings, do_sample=True).suppress_tokens == (4,)
    assert hash(settings) is not None


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"bad_words_ids": [[1], [2, 9]]}, "bad_words_ids[1]"),
        ({"suppress_tokens": [9]}, "suppress_tokens"),
        ({"stop_token_ids": [9]}, "stop_token_ids"),
        ({"forced_bos_token_id": 9}, "forced_bos_token_id"),
        ({"forced_eos_token_id": [1, 9]}, "forced_eos_token_id"),
    ],
)
def test_ids_beyond_the_vocabulary(values, name):
    arguments = {"prompt_lengths": [3], "limits": [4], "eos_token_ids": [1]}
    assert len(processors(GenerationSettings(**values), vocabulary=10, **arguments)) == (name != "stop_token_ids")
    with pytest.raises(InputError, match=re.escape(f"{name} names the id 9; this model's ids are in [0, 9)")):
        processors(GenerationSettings(**values), vocabulary=9, **arguments)


def test_stop_ids_wait_for_the_least_length_as_end_tokens_do():
    settings = GenerationSettings(min_new_tokens=2, stop_token_ids=[4])
    (least,) = processors(settings, prompt_lengths=[1, 3], limits=[9, 9], eos_token_ids=[2], vocabulary=6)
    logits_BV = least([[5, 5, 5], [5, 5, 5, 5]], np.zeros((2, 6), np.float32))
    np.testing.assert_array_equal(np.isinf(logits_BV), [[0] * 6, [0, 0, 1, 0, 1, 0]])
