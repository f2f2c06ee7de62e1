"""Conversations and streams: a reply is what `generate` gives for the whole text so far, which is not read again."""

import itertools

import numpy as np
import pytest

from tests.support.generation_models import V
from tests.support.tiny_bundles import BOS, CHARACTERS
from tfm.errors import InputError, RunCancelledError, RunTimeoutError
from tfm.runtime import CancelToken, load
from tfm.runtime.generation.state import DecoderState

LIMIT = 64
TURNS = [[5, 6, 7], [30], [11, 12, 13, 14, 15, 16, 17, 18, 19], [8, 9]]
SETTINGS = [
    {},
    {"repetition_penalty": 1.3, "min_new_tokens": 5},
    {"do_sample": True, "seed": 4, "temperature": 1.5},
    {"stop_token_ids": [37, 14]},
]
TEXTS = ["abc", "h", "transformer", "0123456789", "zz9", "q"]


@pytest.fixture(scope="module")
def llama(generation_bundle):
    bundle, _ = generation_bundle("llama")
    return load(bundle, provider="cpu", threads=1)


@pytest.fixture
def reads(monkeypatch):
    """How many tokens each read took."""
    found, read = [], DecoderState.read

    def noted(state, rows, control=None):
        found.append(len(rows[0]))
        return read(state, rows, control)

    monkeypatch.setattr(DecoderState, "read", noted)
    return found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_replies_are_those_to_the_whole_text(llama, reads, settings):
    talk, replies = llama.conversation(), set()
    for turn in TURNS:
        before = [*talk.tokens, *turn]
        reply = list(talk.reply(turn, max_new_tokens=8, **settings))
        assert talk.tokens[: len(before) + len(reply)] == [*before, *reply]
        assert len(talk.tokens) - len(before) - len(reply) in (0, 1)  # the end token, where there is one
        assert reads[-1] in (len(turn), len(turn) + 1)  # what is new, and the last token said
        assert reply == llama.generate([before], max_new_tokens=8, **settings)[0]
        replies.add(tuple(reply))
    assert len(replies) > 1


def test_texts(llama):
    """Special tokens are added only at the beginning, and parts join to the text."""
    talk, whole = llama.conversation(), [BOS]
    for text in ("abc", "x", "hello"):
        whole += [4 + CHARACTERS.index(character) for character in text]
        reply = "".join(talk.reply(text, max_new_tokens=6))
        (ids,) = llama.generate([whole], max_new_tokens=6)
        assert reply == "".join(CHARACTERS[token - 4] for token in ids if token >= 4)
        assert talk.tokens[: len(whole) + len(ids)] == [*whole, *ids]
        whole = list(talk.tokens)


def test_rewind(llama, reads):
    talk = llama.conversation()
    first = list(talk.reply([5, 6, 7], max_new_tokens=6))
    list(talk.reply([30, 31], max_new_tokens=6))
    for length in (11, 9, 4, 1):
        talk.rewind(length)
        assert len(talk.tokens) == length
        kept = list(talk.tokens)
        reply = list(talk.reply([20, 21], max_new_tokens=6))
        assert reads[-1] == 2  # nothing that is kept is read again
        assert reply == llama.generate([[*kept, 20, 21]], max_new_tokens=6)[0]
        talk.rewind(length)
    talk.rewind(1)
    assert list(talk.reply([6, 7], max_new_tokens=6)) == first
    talk.rewind(len(talk.tokens))
    kept = list(talk.tokens)
    assert list(talk.reply([9], max_new_tokens=6)) == llama.generate([[*kept, 9]], max_new_tokens=6)[0]


def test_wrong_rewinds(llama):
    talk = llama.conversation()
    with pytest.raises(InputError, match="the conversation has 0 tokens, so it cannot be cut to 1"):
        talk.rewind(1)
    list(talk.reply([5, 6], max_new_tokens=1))
    for length in (0, -1, 1.0, True, None):
        with pytest.raises(InputError, match="length must be an integer of at least 1, but is"):
            talk.rewind(length)
    with pytest.raises(InputError, match="the conversation has 3 tokens, so it cannot be cut to 4"):
        talk.rewind(4)
    assert len(talk.tokens) == 3


def goes_on(llama, talk, turn=(21, 22)):
    """Whether the next reply is that to the whole text, whatever happened before."""
    before = [*talk.tokens, *turn]
    return list(talk.reply(list(turn), max_new_tokens=5)) == llama.generate([before], max_new_tokens=5)[0]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_reply_that_is_left(llama, taken):
    expected = llama.generate([[5, 6, 7]], max_new_tokens=8)[0]
    talk = llama.conversation()
    given = list(itertools.islice(talk.reply([5, 6, 7], max_new_tokens=8), taken))
    assert given == expected[:taken]
    assert talk.tokens == [5, 6, 7, *given]
    assert goes_on(llama, talk)


@pytest.mark.parametrize("taken", [1, 3])
def test_a_reply_that_is_cancelled(llama, taken):
    talk, token = llama.conversation(), CancelToken()
    reply = talk.reply([5, 6, 7], max_new_tokens=8, cancel=token)
    given = [next(reply) for _ in range(taken)]
    token.cancel()
    with pytest.raises(RunCancelledError):
        next(reply)
    assert talk.tokens == [5, 6, 7, *given]
    assert goes_on(llama, talk)


def test_a_turn_that_is_not_even_read(llama):
    talk = llama.conversation()
    list(talk.reply([5, 6, 7], max_new_tokens=3))
    before, token = list(talk.tokens), CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        talk.reply([8, 9], cancel=token)
    with pytest.raises(RunTimeoutError):
        talk.reply([8, 9], timeout=0)
    with pytest.raises(InputError, match=r"inputs\[0\]\[1\] is 40; ids must be in"):
        talk.reply([8, V])
    with pytest.raises(InputError, match="a stream is one text of which nothing is taken back"):
        talk.reply([8], num_beams=2)
    assert talk.tokens == before
    assert goes_on(llama, talk)


@pytest.mark.parametrize("taken", [0, 2])
@pytest.mark.parametrize("meanwhile", ["reply", "rewind"])
def test_an_old_reply_cannot_go_on(llama, taken, meanwhile):
    talk = llama.conversation()
    old = talk.reply([5, 6, 7], max_new_tokens=8)
    for _ in range(taken):
        next(old)
    if meanwhile == "reply":
        assert goes_on(llama, talk)
    else:
        talk.rewind(2)
    before = list(talk.tokens)
    with pytest.raises(InputError, match="the conversation went on after this reply; read a reply to its end, or"):
        next(old)
    assert talk.tokens == before
    assert goes_on(llama, talk)


def test_the_models_limit(llama):
    talk, start = llama.conversation(), np.random.default_rng(0).integers(4, V, 60).tolist()
    reply = list(talk.reply(start, max_new_tokens=100, min_new_tokens=5))
    assert reply == llama.generate([start], max_new_tokens=100, min_new_tokens=5)[0]
    assert len(reply) == 5  # the 65th token is said, and needs no place
    with pytest.raises(InputError, match="the conversation has 65 tokens, so 1 more do not fit into the 64 that"):
        talk.reply([5])
    talk.rewind(62)
    with pytest.raises(InputError, match="the conversation has 62 tokens, so 3 more do not fit into the 64 that this"):
        talk.reply([5, 6, 7])
    before = [*talk.tokens, 5, 6]
    assert list(talk.reply([5, 6])) == llama.generate([before])[0]
    assert len(talk.tokens) == 65


def test_conversations_side_by_side(llama):
    """Two of one model, in turns, token by token."""
    turns = [[5, 6, 7], [30, 9]]
    replies = [llama.conversation().reply(turn, max_new_tokens=6) for turn in turns]
    given = list(zip(*replies, strict=True))
    assert [list(row) for row in zip(*given, strict=True)] == llama.generate(turns, max_new_tokens=6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_stream_is_what_generate_gives(llama, settings):
    texts = llama.generate(TEXTS, max_new_tokens=12, **settings)
    for text, expected in zip(TEXTS, texts, strict=True):
        if not settings.get("do_sample"):
            parts = list(llama.stream(text, max_new_tokens=12, **settings))
            assert all(parts)
            assert "".join(parts) == expected
            assert len(parts) > 1 or len(expected) <= 1
        else:  # each place in a list has draws of its own
            (alone,) = llama.generate([text], max_new_tokens=12, **settings)
            assert "".join(llama.stream(text, max_new_tokens=12, **settings)) == alone
    assert len(set(texts)) == len(TEXTS)
    row = [BOS, 7, 9]
    assert list(llama.stream(row, max_new_tokens=12, **settings)) == llama.generate([row], 12, **settings)[0]


def test_stop_strings(llama):
    """Taken from what is said, of one to three characters: the text ends before the first of them, and no text else."""
    plain = llama.generate(TEXTS, max_new_tokens=16)
    stops = {text[start : start + size] for text in plain for start in (2, 4) for size in (1, 2, 3)} - {""}
    cut = 0
    for stop in sorted(stops):
        found = llama.generate(TEXTS, max_new_tokens=16, stop=[stop, "never said"])
        assert found == [text.split(stop)[0] for text in plain]
        assert found == ["".join(llama.stream(text, max_new_tokens=16, stop=stop)) for text in TEXTS]
        cut += sum(a != b for a, b in zip(found, plain, strict=True))
    assert cut >= len(stops)


def test_several_texts_of_a_prompt_read_it_once(llama, monkeypatch):
    """And are what they are for the prompt given so many times."""
    prompts, rows, read = [[5, 6, 7], [30, 31]], [], DecoderState.read

    def noted(state, new, control=None):
        rows.append(len(new))
        return read(state, new, control)

    monkeypatch.setattr(DecoderState, "read", noted)
    settings = {"do_sample": True, "seed": 3, "max_new_tokens": 12}
    found = llama.generate(prompts, num_return_sequences=3, **settings)
    assert rows == [2]
    alone = llama.generate([row for row in prompts for _ in range(3)], **settings)
    assert found == [alone[:3], alone[3:]]
    assert len({tuple(text) for texts in found for text in texts}) > 4
