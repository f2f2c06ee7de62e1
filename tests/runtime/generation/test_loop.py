"""The loops: what the decoder is fed, which rows leave and when, and how a call ends before its time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.generation_models import V
from tfm.errors import RunCancelledError, RunTimeoutError
from tfm.runtime import CancelToken, load
from tfm.runtime.generation import GenerationSettings, Sampler
from tfm.runtime.generation.loop import Begun, continue_greedily, continue_rows, search_beams
from tfm.runtime.generation.state import DecoderState
from tfm.runtime.generation.stopping import Stopping

PROMPTS = [np.random.default_rng([5, n]).integers(4, V, n).tolist() for n in (3, 9, 1, 6)]
WAYS = {
    "greedy": {},
    "processors": {"repetition_penalty": 1.3, "min_new_tokens": 4},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "seed": 3, "top_p": 0.9},
}


@pytest.fixture(scope="module")
def llama(generation_bundle):
    bundle, _ = generation_bundle("llama")
    return load(bundle, provider="cpu", threads=1)


class Script:
    """Stands for a state: each row says its own numbers, one after the other, whatever it is told."""

    def __init__(self, rows):
        self.rows, self.said, self.fed, self.selected = list(rows), [0] * len(rows), [], []

    def logits(self):
        logits_BV = np.zeros((len(self.rows), 12), np.float32)
        for b, row in enumerate(self.rows):
            logits_BV[b, row[min(self.said[b], len(row) - 1)]] = 50
            self.said[b] += 1
        return logits_BV

    def step(self, token_B, control=None):
        self.fed.append(token_B.tolist())
        return self.logits()

    def select(self, rows):
        self.selected.append(rows.tolist())
        self.rows, self.said = [self.rows[row] for row in rows], [self.said[row] for row in rows]


def begin(*rows, limit=20):
    script = Script(rows)
    limits = [limit] * len(rows)
    begun = Begun(state=script, logits_BV=script.logits(), tokens=[[5 + b] for b in range(len(rows))], limits=limits)
    return script, begun


SAID = ([4, 2], [5, 6, 7, 8, 9, 2], [6, 7, 2], [7, 8, 2], [8, 9, 10, 11, 2])


@pytest.mark.parametrize("sampled", [False, True])
def test_rows_that_have_ended_leave_once_they_are_a_quarter(sampled):
    script, begun = begin(*SAID)
    stopping = Stopping(begun.limits, end_ids=[2])
    sampler = Sampler(0, range(5)) if sampled else None
    steps = list(continue_rows(begun, GenerationSettings(do_sample=sampled), stopping, [2], sampler))
    assert stopping.rows == [row[:-1] for row in SAID]
    assert begun.tokens == [[5 + b, *row] for b, row in enumerate(SAID)]
    # one of five stays until two more have ended; then two are left, and then one
    assert script.selected == [[1, 4], [0]]
    assert script.fed[:2] == [[4, 5, 6, 7, 8], [script.fed[1][0], 6, 7, 8, 9]]
    assert script.fed[2:] == [[7, 10], [8, 11], [9]]
    assert len(steps) == 6


def test_processors_see_the_rows_that_are_there():
    script, begun = begin(*SAID)
    seen = []

    def processor(tokens, logits_BV):
        seen.append([row[0] for row in tokens])
        assert len(tokens) == len(logits_BV)
        return logits_BV

    settings = GenerationSettings(logits_processors=[processor])
    list(continue_rows(begun, settings, Stopping(begun.limits, end_ids=[2]), [2]))
    assert seen == [[5, 6, 7, 8, 9]] * 3 + [[6, 9]] * 2 + [[6]]
    assert script.selected == [[1, 4], [0]]


def test_a_row_that_has_ended_need_not_have_a_choice():
    """A grammar, say, forbids everything after the end."""
    _, begun = begin(*SAID)

    def processor(tokens, logits_BV):
        for row, logits_V in zip(tokens, logits_BV, strict=True):
            if row[-1] == 2:
                logits_V[:] = -np.inf
        return logits_BV

    settings = GenerationSettings(do_sample=True, logits_processors=[processor])
    stopping = Stopping(begun.limits, end_ids=[2])
    list(continue_rows(begun, settings, stopping, [2], Sampler(0, range(5))))
    assert stopping.rows == [row[:-1] for row in SAID]


def test_limits_are_each_rows_own():
    _, begun = begin([4], [5], [6])
    begun.limits[:] = [3, 1, 5]
    stopping = Stopping(begun.limits, end_ids=[2])
    list(continue_rows(begun, GenerationSettings(forced_eos_token_id=9), stopping, [2]))
    assert stopping.rows == [[4, 4, 9], [9], [6, 6, 6, 6, 9]]  # the forced one is at each row's own end


def test_continue_greedily_is_generate(llama):
    expected = llama.generate(PROMPTS, max_new_tokens=12)
    state = DecoderState(llama._sessions["model"], len(PROMPTS))
    assert continue_greedily(state, PROMPTS, [2], 12) == expected


def test_beams_of_ragged_limits_are_those_of_each_alone(llama):
    settings = GenerationSettings(num_beams=3, num_return_sequences=3, repetition_penalty=1.2)
    limits = [4, 11, 7, 1]

    def search(rows, limits):
        state = DecoderState(llama._sessions["model"], len(rows))
        begun = Begun(state=state, logits_BV=state.read(rows), tokens=rows, limits=limits)
        return [[text for text, _ in texts] for texts in search_beams(begun, settings, [2, 37])]

    together = search(PROMPTS, limits)
    assert together == [search([row], [limit])[0] for row, limit in zip(PROMPTS, limits, strict=True)]
    assert {len(texts[0]) for texts in together} > {1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_cancelled_in_the_middle(llama, monkeypatch, way, steps):
    """The next answer is that of a fresh model."""
    expected = llama.generate(PROMPTS, max_new_tokens=12, **WAYS[way])
    token, taken, step = CancelToken(), [], DecoderState.step

    def cancelling(state, token_B, control=None):
        if len(taken) == steps:
            token.cancel()
        taken.append(token_B)
        return step(state, token_B, control)

    with monkeypatch.context() as patched:
        patched.setattr(DecoderState, "step", cancelling)
        with pytest.raises(RunCancelledError):
            llama.generate(PROMPTS, max_new_tokens=12, cancel=token, **WAYS[way])
    assert len(taken) == steps + 1
    assert llama.generate(PROMPTS, max_new_tokens=12, **WAYS[way]) == expected


@pytest.mark.parametrize("way", WAYS)
def test_the_time_is_up(llama, way):
    with pytest.raises(RunTimeoutError, match="took longer than its timeout of 0 s"):
        llama.generate(PROMPTS, timeout=0, **WAYS[way])
    assert llama.generate(PROMPTS, timeout=600.0, max_new_tokens=5, **WAYS[way])


def test_a_stream_is_cancelled_where_it_is(llama):
    expected, token = llama.generate(PROMPTS, max_new_tokens=12), CancelToken()
    stream = llama.stream(PROMPTS[1], max_new_tokens=12, cancel=token)
    assert [next(stream) for _ in range(4)] == expected[1][:4]
    token.cancel()
    with pytest.raises(RunCancelledError):
        next(stream)
    assert llama.generate(PROMPTS, max_new_tokens=12) == expected


def test_four_threads_as_one(llama):
    """Each with its own prompts and settings, and all at once."""
    jobs = [(WAYS[way], PROMPTS[start:] + PROMPTS[:start]) for way in WAYS for start in range(4)] * 3

    def answer(job):
        settings, prompts = job
        return llama.generate(prompts, max_new_tokens=10, batch_size=3, **settings)

    serial = [answer(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, jobs)) == serial
    assert len({str(texts) for texts in serial}) == 16
