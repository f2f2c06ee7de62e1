"""What callers get wrong beside arrays: a typed error that says what was expected, in few words."""

import numpy as np
import pytest

from tfm.bundle.manifest import read_manifest
from tfm.errors import BundleError, InputError, ProviderError
from tfm.runtime import check_golden, load

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
        with pytest.raises(TypeError, match=r"^of the caller$"):
            call(texts())


def test_tokenize_takes_one_text_as_a_list_of_one(encoder):
    assert encoder.tokenize("a b") == encoder.tokenize(["a b"]) == [[1, 4, 5, 2]]
    assert encoder.tokenize([]) == []
    with pytest.raises(InputError, match="a text must be a str, but is 3"):
        encoder.tokenize(["a", 3])


def test_an_option_that_no_task_has(encoder):
    with pytest.raises(InputError, match=r"^there is no option 'batch_token'; the nearest is 'batch_tokens' \(known: "):
        encoder.embed("a", batch_token=8)
    with pytest.raises(InputError, match=r"^there is no option 'progress'; .*window"):
        encoder.embed_stream("a", progress=True)


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None, HUGE], ids=lambda count: type(count).__name__)
def test_counts(encoder, count):
    with pytest.raises(InputError, match=r"window must be an integer of at least 1, but is .{1,60}$"):
        encoder.embed_stream("a", window=count)


@pytest.mark.parametrize(
    "threads", [0, -1, True, 2.0, "2", [], HUGE, -HUGE], ids=lambda threads: type(threads).__name__
)
def test_threads(make_bundle, threads):
    with pytest.raises(InputError, match=r"threads must be (an integer of at least 1|at most 1024), but is .{1,60}$"):
        load(make_bundle("encoder"), threads=threads)


@pytest.mark.parametrize("timeout", [HUGE, -1, "3"], ids=lambda timeout: type(timeout).__name__)
def test_timeouts(encoder, timeout):
    with pytest.raises(InputError, match=r"timeout must be a number of seconds, at least 0, or None, but is .{1,60}$"):
        encoder.embed("a", timeout=timeout)


def test_a_timeout_larger_than_any_float_never_ends(encoder):
    np.testing.assert_array_equal(encoder.embed("a", timeout=10**400), encoder.embed("a"))


@pytest.mark.parametrize("open_bundle", [load, check_golden, read_manifest])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "a bundle is given by the path of its folder or .zip, a str or a Path, but this is None"),
        (3, "a bundle is given by .*, but this is an int"),
        (b"toy.tfm", "a bundle is given by .*, but this is a bytes"),
        ([1], "a bundle is given by .*, but this is a list"),
        ("", r'the path of the bundle is empty; pass "\." for the current folder'),
        ("a\0b", r"'a\\x00b' cannot be looked at: embedded null (byte|character.*); check the path"),
        ("a\ud800", r"'a\\ud800' cannot be looked at: .*; check the path"),
        ("x" * 10**5, r"'x{10,60}\.\.\.x{10,60}' cannot be looked at: File name too long; check the path"),
        ("nowhere.tfm", r".*nowhere\.tfm is not there; a bundle is the folder that tfm-export wrote"),
    ],
    ids=["None", "int", "bytes", "list", "empty", "NUL", "surrogate", "long", "nowhere"],
)
def test_paths(open_bundle, path, message):
    with pytest.raises(BundleError, match=f"^{message}"):
        open_bundle(path)


@pytest.mark.parametrize("precision", [[], ["int8"], {}, 3, None, b"int8", "x" * 10**6], ids=lambda p: str(p)[:9])
def test_precisions(make_golden, precision):
    bundle = make_golden()
    with pytest.raises(BundleError, match=r"encoder has no .{1,120} graph; it has: fp32, int8$"):
        load(bundle, precision=precision)
    if precision not in ([], ["int8"], {}, None):
        with pytest.raises(BundleError, match=r"encoder has no .{1,120} graph; it has: fp32, int8$"):
            check_golden(bundle, provider="cpu", precision=precision)


@pytest.mark.parametrize(
    "provider", [[[]], 3, None, {"cpu": 1}, {"cpu"}, b"cpu", "CPU", "", "x" * 10**6], ids=lambda p: str(p)[:9]
)
def test_providers(make_bundle, provider):
    with pytest.raises(ProviderError, match=r"unknown provider .{1,120}; the nearest is '(cpu|cuda|auto)' \(known: "):
        load(make_bundle("encoder"), provider=provider)
    with pytest.raises(ProviderError, match="provider is an empty list"):
        load(make_bundle("copier"), provider=[])


@pytest.mark.parametrize("fallback", ["no", None, 1])
def test_fallbacks(make_bundle, fallback):
    with pytest.raises(InputError, match="fallback must be True or False, but is "):
        load(make_bundle("encoder"), fallback=fallback)
