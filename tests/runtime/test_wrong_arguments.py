"""What callers get wrong beside arrays: a typed error that says what was expected, in few words."""

import numpy as np
import pytest

from tfm.errors import InputError
from tfm.runtime import load

HUGE = -(10**5000)  # of more digits than Python prints


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        (3, "an int"),
        (np.array(3), "an ndarray"),
        (np.array("a b"), "an ndarray"),
        (bytearray(b"a"), "a bytearray"),
        (memoryview(b"a"), "a memoryview"),
        (None, "None"),
    ],
)
def test_what_cannot_be_listed(encoder, inputs, kind):
    for call in (encoder.embed, encoder.embed_stream, encoder.tokenize):
        with pytest.raises(InputError, match=f"^inputs must be texts or rows of token ids, but are {kind}$"):
            call(inputs)


@pytest.mark.parametrize("inputs", [{"a b": 1}, {"a b"}, frozenset(["a b"])])
def test_what_has_no_order(encoder, copier, inputs):
    for call in (encoder.embed, encoder.embed_stream, encoder.tokenize, copier.generate):
        with pytest.raises(InputError, match=r"^inputs must be in order, but are a \w+; pass a list of its items$"):
            call(inputs)


def test_errors_of_the_callers_own_iterator_pass(encoder):
    def texts():
        yield "a"
        raise TypeError("of the caller")

    for call in (encoder.embed, lambda inputs: list(encoder.embed_stream(inputs))):
        with pytest.raises(TypeError, match="^of the caller$"):
            call(texts())


def test_tokenize_takes_one_text_as_a_list_of_one(encoder):
    assert encoder.tokenize("a b") == encoder.tokenize(["a b"]) == [[1, 4, 5, 2]]
    assert encoder.tokenize([]) == []
    with pytest.raises(InputError, match="a text must be a str, but is 3"):
        encoder.tokenize(["a", 3])


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None, HUGE])
def test_counts(encoder, count):
    with pytest.raises(InputError, match=r"window must be an integer of at least 1, but is .{1,60}$"):
        encoder.embed_stream("a", window=count)


@pytest.mark.parametrize("threads", [0, -1, True, 2.0, "2", [], HUGE, -HUGE, 10**9])
def test_threads(make_bundle, threads):
    with pytest.raises(InputError, match=r"threads must be (an integer of at least 1|at most 1024), but is .{1,60}$"):
        load(make_bundle("encoder"), threads=threads)


@pytest.mark.parametrize("timeout", [HUGE, -1, "3"])
def test_timeouts(encoder, timeout):
    with pytest.raises(InputError, match=r"timeout must be a number of seconds, at least 0, or None, but is .{1,60}$"):
        encoder.embed("a", timeout=timeout)


def test_a_timeout_larger_than_any_float_never_ends(encoder):
    np.testing.assert_array_equal(encoder.embed("a", timeout=10**400), encoder.embed("a"))
