"""Prompt lookup: what is guessed, what is forgotten, and that the text is the one without guesses."""

import numpy as np
import pytest

from tests.support.generation_models import V
from tfm.errors import InputError, RunCancelledError
from tfm.runtime import CancelToken, load
from tfm.runtime.control import Control
from tfm.runtime.generation import GenerationSettings
from tfm.runtime.generation.lookup import PromptLookup
from tfm.runtime.generation.state import DecoderState

LIMIT = 64
WAYS = {
    "greedy": {},
    "processors": {"repetition_penalty": 1.1, "min_new_tokens": 4},
    "sampling": {"do_sample": True, "seed": 3, "temperature": 0.05},
}
LOOKUP = {"prompt_lookup_num_tokens": 6}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def decoder(request, generation_bundle):
    bundle, _ = generation_bundle(request.param)
    return load(bundle, provider="cpu", threads=1)


@pytest.fixture
def read_ahead(monkeypatch):
    """How many tokens each read with guesses took."""
    found, read = [], DecoderState.read_ahead

    def noted(state, ids, control=None):
        found.append(len(ids))
        return read(state, ids, control)

    monkeypatch.setattr(DecoderState, "read_ahead", noted)
    return found


@pytest.fixture
def steps(monkeypatch):
    """What was read token by token."""
    found, step = [], DecoderState.step

    def noted(state, token_B, control=None):
        found.append(token_B.tolist())
        return step(state, token_B, control)

    monkeypatch.setattr(DecoderState, "step", noted)
    return found


def prompts():
    """Some that repeat themselves, and some that do not."""
    random = np.random.default_rng(8)
    rows = [random.integers(4, V, n).tolist() for n in (1, 5, 9)]
    return [*rows, rows[2] + rows[1] + rows[2][:4], [7, 8] * 6, [9] * 5]


# ------------------------------------------------ the text


@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_the_one_without_guesses(decoder, read_ahead, way):
    expected = decoder.generate(prompts(), 24, batch_size=1, **WAYS[way])
    assert not read_ahead
    assert decoder.generate(prompts(), 24, **WAYS[way], **LOOKUP) == expected
    assert read_ahead


def test_several_tokens_come_of_one_run(decoder, read_ahead, steps):
    [expected] = decoder.generate([[7, 8] * 6], 40)
    whole = len(steps)
    steps.clear()
    assert decoder.generate([[7, 8] * 6], 40, **LOOKUP) == [expected]
    assert len(steps) + len(read_ahead) < whole
    assert sum(read_ahead) + len(steps) >= whole


def test_a_stream_gives_one_token_at_a_time(decoder):
    prompt = [7, 8] * 6
    assert list(decoder.stream(prompt, 20, **LOOKUP)) == decoder.generate([prompt], 20)[0]


def test_a_reply_that_is_left_leaves_no_guess_behind(decoder, read_ahead):
    for said in range(1, 9):
        plain, guessed = decoder.conversation(), decoder.conversation()
        for settings, talk in (({}, plain), (LOOKUP, guessed)):
            reply = talk.reply([7, 8] * 6, 20, **settings)
            first = [next(reply) for _ in range(said)]
            assert talk.tokens == [*[7, 8] * 6, *first]
        assert plain.tokens == guessed.tokens
        assert list(plain.reply([11, 5], 8)) == list(guessed.reply([11, 5], 8, **LOOKUP))
    assert read_ahead


def test_the_models_limit_is_kept(decoder, read_ahead):
    prompt = [7, 8, 9] * 19  # 57 of 64
    assert decoder.generate([prompt], 50, **LOOKUP) == decoder.generate([prompt], 50)
    assert sum(read_ahead) <= LIMIT - len(prompt)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_nothing_is_read_behind_the_last_token(decoder, read_ahead, limit):
    assert decoder.generate([[7, 8] * 6], limit, **LOOKUP) == decoder.generate([[7, 8] * 6], limit)
    assert sum(read_ahead) <= limit - 1


def test_a_read_that_is_ended_leaves_the_state_as_it_was(decoder):
    state, row = DecoderState(decoder._sessions["model"], 1), [5, 6, 7, 8]
    state.read([row])
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        state.read_ahead([9, 10, 11], Control(token))
    assert state.length_B.tolist() == [4]
    other = DecoderState(decoder._sessions["model"], 1)
    other.read([row])
    np.testing.assert_array_equal(state.step(np.array([9])), other.step(np.array([9])))


def test_logits_read_ahead_are_those_of_steps(decoder):
    ahead, plain = (DecoderState(decoder._sessions["model"], 1) for _ in range(2))
    for state in (ahead, plain):
        state.read([[5, 6, 7]])
    found_SV = ahead.read_ahead([9, 10, 11])
    expected_SV = np.concatenate([plain.step(np.array([token])).copy() for token in (9, 10, 11)])
    np.testing.assert_allclose(found_SV, expected_SV, rtol=0, atol=5e-6)  # as in test_state.py
    ahead.rewind(4)
    plain.rewind(4)
    np.testing.assert_allclose(ahead.step(np.array([30])), plain.step(np.array([30])), rtol=0, atol=5e-6)


# ------------------------------------------------ the guesses


class Said:
    """Stands for a state: notes what it is told to read."""

    def __init__(self, length, room=1000):
        self.length_B, self.room_ahead, self.read = np.array([length]), room, []

    def step(self, token_B, control=None):
        return self.read_ahead(token_B.tolist())

    def read_ahead(self, ids, control=None):
        self.read.append(list(ids))
        self.length_B += len(ids)
        return np.array(ids, np.float32)[:, None]

    def rewind(self, length):
        self.length_B[:] = length


def said(tokens, told, most=8, limit=1000, room=1000):
    """What is read as these tokens are chosen, and the logits after each."""
    tokens, state = list(tokens), Said(len(tokens), room)
    lookup, logits = PromptLookup(state, tokens, limit, most), []
    for token in told:
        tokens.append(token)
        lookup.took()
        assert state.length_B[0] >= len(tokens) - 1
        logits.append(lookup.logits().tolist())
        # The stand-in's logits after a token are its id: of a token that was guessed, too.
        assert logits[-1] == [[token]]
    assert state.length_B[0] - len(lookup._ahead) == len(tokens)
    return state.read


def test_what_followed_the_last_time_is_guessed():
    assert said([1, 2, 3, 4, 5, 6, 7, 9], [2, 3]) == [[2], [3, 4, 5, 6, 7]]


def test_three_tokens_say_more_than_two_and_the_last_time_more_than_the_first():
    assert said([1, 2, 3, 4, 9, 2, 3, 5, 1, 2], [3]) == [[3, 4, 9, 2, 3]]
    assert said([2, 3, 4, 4, 4, 4, 9, 2, 3, 5, 6, 7, 8, 2], [3]) == [[3, 5, 6, 7, 8]]


def test_what_repeats_itself_goes_on_behind_the_end():
    assert said([7, 8, 7], [8], most=5) == [[8, 7, 8, 7, 8]]


def test_guesses_that_are_right_are_not_read_again_and_more_follow():
    read = said([7, 8, 7], [8, *[7, 8] * 7])
    assert read[0] == [8, 7, 8, 7, 8]
    assert [len(ids) for ids in read] == [5, 9, 9]
    assert read[1] == [7, 8, 7, 8, 7, 8, 7, 8, 7]


def test_guesses_that_are_wrong_are_forgotten_and_a_pause_follows():
    tokens = [1, 2, 3, 4, 1, 2, 5, 6, 1]
    # After 1, 2 comes 5; but it is 9, and from then on nothing new is known.
    assert said(tokens, [2, 9, 1, 2, 1, 2, 9]) == [[2, 5, 6, 1, 2], [9], [1], [2, 9, 1, 2, 9], [1], [2], [9]]


def test_no_more_are_guessed_than_there_is_room_for():
    assert said([7, 8, 7], [8], room=2) == [[8, 7, 8]]
    assert said([7, 8, 7], [8], limit=3) == [[8, 7]]
    assert said([7, 8, 7], [8], limit=2) == [[8]]


# ------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "prompt_lookup_num_tokens reads guesses of one text at a time"),
        ({"do_sample": True, "num_return_sequences": 2}, "prompt_lookup_num_tokens reads guesses of one text"),
        (
            {"prompt_lookup_num_tokens": -1},
            "prompt_lookup_num_tokens must be an integer of at least 0, or None, but is -1",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(InputError, match=message):
        GenerationSettings(**{**LOOKUP, **settings})


def test_rows_side_by_side_are_refused(decoder):
    with pytest.raises(InputError, match="one text at a time, but batch_size is 4"):
        decoder.generate(prompts(), 4, batch_size=4, **LOOKUP)


def test_an_encoder_decoder_guesses_by_its_target(generation_bundle, read_ahead):
    bundle, _ = generation_bundle("t5")
    model = load(bundle, provider="cpu", threads=1)
    sources = [[5, 6, 7, 8], [9] * 5]
    expected = model.generate(sources, 20, batch_size=1, min_new_tokens=20)
    assert model.generate(sources, 20, min_new_tokens=20, **LOOKUP) == expected
    assert read_ahead
