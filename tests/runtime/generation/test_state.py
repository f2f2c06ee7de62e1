"""DecoderState against transformers' own logits of the whole text, which know of no cache."""

import numpy as np
import pytest
import torch

from tests.support.generation_models import V
from tfm.errors import RunCancelledError
from tfm.runtime import CancelToken, load
from tfm.runtime.control import Control
from tfm.runtime.generation import state as states
from tfm.runtime.generation.state import DecoderState

LIMIT = 64
TOLERANCE = 5e-6  # absolute, of logits up to 2.4; measured over all 130 comparisons of this file: 1.2e-6


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request, generation_bundle):
    bundle, model = generation_bundle(request.param)
    return load(bundle, provider="cpu", threads=1)._sessions["model"], model


def expected(model, rows):
    with torch.no_grad():
        return np.stack([model(torch.tensor([row])).logits[0, -1].numpy() for row in rows])


def agree(logits_BV, model, rows):
    np.testing.assert_allclose(logits_BV, expected(model, rows), rtol=0, atol=TOLERANCE)


def random_rows(*lengths):
    return [np.random.default_rng([7, n]).integers(4, V, n).tolist() for n in lengths]


def extend(rows, token_B):
    return [[*row, int(token)] for row, token in zip(rows, token_B, strict=True)]


@pytest.fixture
def runs(monkeypatch):
    """The shape of what is read, and the cache's length, run by run."""
    found, bind = [], DecoderState._bind

    def noted(state, step):
        found.append((step.ids_BS.shape, next(iter(state._values.values())).shape()[2]))
        return bind(state, step)

    monkeypatch.setattr(DecoderState, "_bind", noted)
    return found


@pytest.mark.parametrize("part", [1, 4, 7, 100])
@pytest.mark.parametrize("lengths", [(17,), (17, 1, 4, 8, 5)])
def test_reading_in_parts(pair, monkeypatch, runs, part, lengths):
    decoder, model = pair
    rows = random_rows(*lengths)
    monkeypatch.setattr(states, "_PART", part)
    monkeypatch.setattr(states, "_TOGETHER", 20)  # several are more, and are read one by one
    state = DecoderState(decoder, len(rows))
    agree(state.read(rows), model, rows)
    sizes = [size for (_, size), _ in runs]
    assert all(batch == 1 for (batch, _), _ in runs)
    assert max(sizes) == min(part, 17)
    assert sum(sizes) == sum(lengths) or part == 1  # which are steps, bound once for all
    assert state.length_B.tolist() == list(lengths)
    tokens = list(range(9, 9 - len(rows), -1))
    agree(state.step(np.array(tokens)), model, extend(rows, tokens))  # the cache is whole too


@pytest.mark.parametrize(
    ("together", "sizes"), [(36, [(4, 9)]), (35, [(1, 9), (1, 3), (1, 5), (1, 7)])], ids=["together", "one by one"]
)
def test_rows_go_together_while_they_are_short(pair, monkeypatch, runs, together, sizes):
    decoder, model = pair
    rows = random_rows(9, 3, 5, 7)
    monkeypatch.setattr(states, "_TOGETHER", together)
    agree(DecoderState(decoder, 4).read(rows), model, rows)
    assert [size for size, _ in runs] == sizes


def test_the_cache_grows_as_parts_are_read(pair, monkeypatch, runs):
    """So that attention does not look at what is not filled yet."""
    decoder, model = pair
    monkeypatch.setattr(states, "_PART", 8)
    monkeypatch.setattr(states, "_BLOCK", 4)
    state, rows = DecoderState(decoder, 1), random_rows(5)
    state.read(rows)
    runs.clear()
    more = random_rows(30)
    agree(state.read(more), model, [[*row, *new] for row, new in zip(rows, more, strict=True)])
    assert [room for _, room in runs] == [16, 24, 32, 36]


def test_padding_that_all_rows_have_left_is_dropped(pair):
    decoder, model = pair
    state, rows = DecoderState(decoder, 3), random_rows(2, 30, 5)
    state.read(rows)
    state.select(np.array([0, 2]))
    assert state._used == 5
    agree(state.step(np.array([9, 9])), model, extend([rows[0], rows[2]], [9, 9]))


@pytest.mark.parametrize("length", [0, 3, 9])
def test_rewind(pair, length):
    decoder, model = pair
    state, [row] = DecoderState(decoder, 1), random_rows(9)
    state.read([row])
    state.rewind(length)
    assert state.length_B.tolist() == [length]
    more = random_rows(4)
    agree(state.read(more), model, [[*row[:length], *more[0]]])


def test_rows_of_different_lengths_read_on(pair):
    decoder, model = pair
    state, rows = DecoderState(decoder, 3), random_rows(2, 9, 5)
    state.read(rows)
    for more in (random_rows(6, 1, 3), random_rows(1, 12, 2)):
        rows = [[*row, *new] for row, new in zip(rows, more, strict=True)]
        agree(state.read(more), model, rows)
    assert state.length_B.tolist() == [9, 22, 10]


@pytest.mark.parametrize("block", [1, 5, 32])
def test_the_cache_grows(pair, monkeypatch, block):
    """To the model's limit, and from then on no more."""
    decoder, model = pair
    monkeypatch.setattr(states, "_BLOCK", block)
    state, rows = DecoderState(decoder, 2), random_rows(3, 6)
    state.read(rows)
    rooms = {state._room}
    for step in range(LIMIT - 6):
        token_B = np.array([4 + step % 30, 39 - step % 35])
        rows = extend(rows, token_B)
        logits_BV = state.step(token_B)
        rooms.add(state._room)
        if step % 9 == 0 or step == LIMIT - 7:
            agree(logits_BV, model, rows)
    assert max(rooms) == LIMIT
    assert len(rooms) > {1: 20, 5: 8, 32: 1}[block]


def test_a_row_at_the_limit_leaves_the_others_alone(pair):
    decoder, model = pair
    state, rows = DecoderState(decoder, 2), random_rows(LIMIT, 3)
    agree(state.read(rows), model, rows)
    for token in range(10, 20):
        rows[1].append(token)
        agree(state.step(np.array([token, token]))[1:], model, rows[1:])
    assert state.length_B.tolist() == [LIMIT, 13]


def test_a_step_copies_no_cache(pair):
    decoder, _ = pair
    state = DecoderState(decoder, 2)
    state.read(random_rows(3, 5))
    before = {name: (value.data_ptr(), value.numpy().copy()) for name, value in state._values.items()}
    for token in (5, 6, 7):
        state.step(np.array([token, token]))
    for name, (address, array) in before.items():
        after = state._values[name]
        assert after.data_ptr() == address
        changed = (after.numpy() != array).any((1, 3))
        assert changed[:, 5:8].all()
        assert changed.sum() == 6  # nothing else is written


@pytest.mark.parametrize("parents", [[0, 0, 0], [2, 0, 1], [1, 1, 2], [0, 1, 2]])
def test_reorder(pair, parents):
    decoder, model = pair
    state, rows = DecoderState(decoder, 3), random_rows(7, 4, 11)
    state.read(rows)
    for tokens in ([5, 6, 7], [30, 31, 32]):
        state.reorder(np.array(parents))
        rows = extend([rows[parent] for parent in parents], tokens)
        agree(state.step(np.array(tokens)), model, rows)


@pytest.mark.parametrize("chosen", [[1], [2, 0], [0, 0, 1, 1, 2, 2], [2, 1, 0]])
def test_select(pair, chosen):
    decoder, model = pair
    state, rows = DecoderState(decoder, 3), random_rows(7, 4, 31)
    state.read(rows)
    state.step(np.array([9, 9, 9]))  # also after a step, whose binding is then another batch's
    state.select(np.array(chosen))
    rows = [[*rows[row], 9] for row in chosen]
    for token in (12, 20):  # the second makes the cache longer
        tokens = [token + number for number in range(len(chosen))]
        rows = extend(rows, tokens)
        agree(state.step(np.array(tokens)), model, rows)


@pytest.mark.parametrize("runs_before", [0, 1, 3, 7])
def test_a_read_that_is_cancelled(pair, monkeypatch, runs_before):
    """However many of its parts, and rows, had been read, the state is as it was."""
    decoder, model = pair
    monkeypatch.setattr(states, "_PART", 3)
    state, rows, token = DecoderState(decoder, 2), random_rows(5, 2), CancelToken()
    state.read(rows)
    bind, runs = DecoderState._bind, []

    def cancelling(state, step):
        if len(runs) == runs_before:
            token.cancel()
        runs.append(step)
        return bind(state, step)

    with monkeypatch.context() as patched:
        patched.setattr(DecoderState, "_bind", cancelling)
        with pytest.raises(RunCancelledError, match="cancelled by its CancelToken; the model stays usable"):
            state.read(random_rows(14, 13), Control(token))
    assert len(runs) == runs_before + 1
    assert state.length_B.tolist() == [5, 2]
    more = random_rows(3, 6)
    agree(state.read(more), model, [[*row, *new] for row, new in zip(rows, more, strict=True)])


def test_a_step_that_is_cancelled(pair):
    decoder, model = pair
    state, rows, token = DecoderState(decoder, 2), random_rows(5, 2), CancelToken()
    state.read(rows)
    token.cancel()
    with pytest.raises(RunCancelledError):
        state.step(np.array([4, 4]), Control(token))
    agree(state.step(np.array([8, 9])), model, extend(rows, [8, 9]))
