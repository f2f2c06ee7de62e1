"""Where rows end, however their text is cut into tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm.runtime.generation import Stopping, StopText

PIECES = ["", "a", "b", "ab", "ba", "aab", "c", "abc", "x", " ", "\N{GREEK SMALL LETTER ALPHA}"]


def decode(ids):
    return "".join(PIECES[token] for token in ids)


def cut(text, stop):
    """By the definition: the shortest beginning that ends with a stop string, without the longest such string."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@pytest.mark.parametrize(
    ("parts", "stop", "given_out", "stopped"),
    [
        (["one ST", "O", "P two"], ["STOP"], ["one ", "", "", ""], True),
        (["one ST", "O", "RM"], ["STOP"], ["one ", "", "STORM", ""], False),
        (["one ST"], ["STOP"], ["one ", "ST"], False),
        (["aab"], ["ab"], ["a", ""], True),
        (["a", "a", "b"], ["ab"], ["", "a", "", ""], True),
        (["xabcd"], ["bcd", "c"], ["xab", ""], True),
        (["xabc"], ["c", "bc"], ["xa", ""], True),
        (["abc", "d"], [], ["abc", "d", ""], False),
        (["\n", "\n"], ["\n\n"], ["", "", ""], True),
    ],
)
def test_stop_strings(parts, stop, given_out, stopped):
    texts = StopText(stop)
    assert [*(texts.push(part) for part in parts), texts.end()] == given_out
    assert texts.stopped == stopped
    assert "".join(given_out) == cut("".join(parts), stop)[0]


STRINGS = st.text("ab", min_size=1, max_size=4)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(parts=st.lists(st.text("abc", max_size=5), max_size=8), stop=st.lists(STRINGS, max_size=3))
def test_the_cut_does_not_depend_on_the_parts(parts, stop):
    texts = StopText(stop)
    out = "".join(texts.push(part) for part in parts) + texts.end()
    assert (out, texts.stopped) == cut("".join(parts), stop)


def run(columns, limits, **options):
    stopping = Stopping(limits, **options)
    new = []
    for column in columns:
        if stopping.done:
            break
        new.append(stopping.push(np.array(column)))
    return stopping, new


def test_end_ids_and_lengths():
    columns = [[1, 9, 4], [2, 3, 4], [8, 3, 4], [1, 1, 9], [5, 5, 5]]
    stopping, new = run(columns, [4, 4, 3], end_ids=[8, 9])
    assert stopping.rows == [[1, 2], [], [4, 4, 4]]
    assert stopping.reasons == ["stop_token", "stop_token", "length"]
    assert stopping.done_B.all()
    assert new == [[""] * 3] * 3


def test_rows_go_on_until_each_has_ended():
    stopping, _ = run([[1, 9]], [4, 4], end_ids=[9])
    assert stopping.done_B.tolist() == [False, True]
    assert not stopping.done
    assert stopping.reasons == [None, "stop_token"]


def test_stop_strings_across_tokens():
    """Row 0 ends within its third token, row 1 by its end token, row 2 by its length, with what was held back."""
    columns = [[8, 8, 8], [5, 1, 9], [7, 10, 1]]
    stopping, new = run(columns, [9, 9, 3], end_ids=[10], stop=["aababc", "bab", "aa"], decode=decode)
    assert stopping.rows == [[8, 5], [8, 1], [8, 9, 1]]
    assert stopping.reasons == ["stop_string", "stop_token", "length"]
    assert new == [["x", "x", "x"], ["", "", " "], ["", "a", "a"]]


def test_a_stop_string_complete_with_the_last_token_allowed():
    stopping, new = run([[8], [3]], [2], end_ids=[], stop=["ab"], decode=decode)
    assert stopping.reasons == ["stop_string"]
    assert new == [["x"], [""]]


def test_an_incomplete_character_at_the_end():
    """It may complete a stop string only when the text is over."""

    def bytes_of(ids):
        return bytes(ids).decode(errors="replace")

    stopping, new = run([[0x61], [0xE2], [0x82]], [3], end_ids=[], stop=["\ufffd"], decode=bytes_of)
    assert stopping.reasons == ["stop_string"]
    assert new == [["a"], [""], [""]]
    stopping, new = run([[0x61], [0xE2], [0x82]], [3], end_ids=[], decode=bytes_of)
    assert new == [["a"], [""], ["\ufffd"]]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    columns=st.lists(st.lists(st.integers(0, 10), min_size=2, max_size=2), min_size=8, max_size=8),
    stop=st.lists(STRINGS, max_size=3),
    limits=st.lists(st.integers(1, 8), min_size=2, max_size=2),
)
def test_texts_are_the_decoded_rows_cut(columns, stop, limits):
    stopping, new = run(columns, limits, end_ids=[10], stop=stop, decode=decode)
    assert stopping.done
    for b in range(2):
        ids = [column[b] for column in columns][: limits[b]]
        ids = ids[: ids.index(10)] if 10 in ids else ids
        text, stopped = cut(decode(ids), stop)
        assert "".join(part[b] for part in new) == text
        assert (stopping.reasons[b] == "stop_string") == stopped
        assert stopping.rows[b] == ids[: len(stopping.rows[b])]
        if stopped:  # no token after the one that completed it
            assert cut(decode(stopping.rows[b]), stop)[1]
            assert not cut(decode(stopping.rows[b][:-1]), stop)[1]
        else:
            assert stopping.rows[b] == ids
