from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfm.bundle.manifest import Signature, TensorSpec
from tfm.errors import InputError
from tfm.runtime.inputs.checks import InputChecks

IDS = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=30522)
MASK = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"), below=2)
PAST = TensorSpec(name="past", dtype="float32", shape=("batch", 2, "past_sequence", 3))

check = InputChecks(Signature(inputs=(IDS, MASK), outputs=(), max_length={"sequence": 5}))
check_cached = InputChecks(Signature(inputs=(IDS, PAST), outputs=(), max_length={"past_sequence + sequence": 6}))

ALL = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "past_sequence + sequence"), below=2)
check_sum = InputChecks(Signature(inputs=(ALL, IDS, PAST), outputs=(), max_length={"past_sequence + sequence": 6}))


def good(**changes):
    return {"input_ids": np.ones((2, 4), np.int64), "attention_mask": np.ones((2, 4), np.int64), **changes}


def refused(message, **changes):
    with pytest.raises(InputError, match=message):
        check(good(**changes))


def test_good_arrays_are_passed_through():
    arrays = good()
    checked = check(arrays)
    assert all(checked[name] is arrays[name] for name in arrays)


def test_extremes_are_good():
    check(good(input_ids=np.array([[0, 30521, 0, 30521]] * 2)))
    check_cached({"input_ids": np.zeros((1, 1), np.int64), "past": np.zeros((1, 2, 0, 3), np.float32)})
    check_cached({"input_ids": np.zeros((1, 1), np.int64), "past": np.zeros((1, 2, 5, 3), np.float32)})


def test_views_are_copied_only_where_they_must_be():
    ids = np.arange(32).reshape(4, 2, 4)
    for view in (ids[0], ids[1:3, 1][:, ::-1], ids[0, ::-1], np.asfortranarray(ids[1]), np.broadcast_to(5, (2, 4))):
        checked = check(good(input_ids=view))["input_ids"]
        assert (checked is view) == view.flags.c_contiguous
        assert checked.flags.c_contiguous
        np.testing.assert_array_equal(checked, view)


def test_read_only_arrays_are_passed_through():
    ids = np.ones((2, 4), np.int64)
    ids.flags.writeable = False
    assert check(good(input_ids=ids))["input_ids"] is ids


def test_misaligned_arrays_are_copied():
    ids = np.arange(8).reshape(2, 4)
    odd = np.frombuffer(b"\0" + ids.tobytes(), np.int64, offset=1).reshape(2, 4)
    assert not odd.flags.aligned
    checked = check(good(input_ids=odd))["input_ids"]
    assert checked.flags.aligned
    np.testing.assert_array_equal(checked, ids)


def test_memory_maps(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(8).reshape(2, 4))
    ids = np.load(path, mmap_mode="r")
    checked = check(good(input_ids=ids))["input_ids"]
    assert type(checked) is np.ndarray
    assert np.shares_memory(checked, ids)


def test_names():
    refused(
        r"there is no input 'atention_mask'; the nearest is 'attention_mask' \(known: attention_mask, input_ids\)",
        atention_mask=np.ones((2, 4), np.int64),
    )
    with pytest.raises(
        InputError, match=r"the input 'attention_mask' is missing; the model takes input_ids, attention_mask"
    ):
        check({"input_ids": np.ones((2, 4), np.int64)})
    with pytest.raises(InputError, match=r"the input 'input_ids' is missing"):
        check({})


@pytest.mark.parametrize("dtype", ["int32", "uint64", "float32", "bool", "object", "S1", "M8[s]"])
def test_dtypes_are_exact(dtype):
    message = r"input_ids is \S+, but must be int64 \[batch, sequence\]"
    refused(message, input_ids=np.zeros((2, 4), dtype))


def test_byte_order():
    message = r'input_ids is >i8 in the other byte order, which onnxruntime reads as garbage; .* .astype\("int64"\)'
    refused(message, input_ids=np.ones((2, 4), ">i8"))


def test_rank():
    refused(
        r"input_ids has shape \(4,\), but must have 2 dimensions, int64 \[batch, sequence\]",
        input_ids=np.ones(4, np.int64),
    )
    refused(r"has shape \(1, 2, 4\), but must have 2", attention_mask=np.ones((1, 2, 4), np.int64))


def test_named_sizes_agree():
    refused(
        r"attention_mask has shape \(2, 3\), but must be int64 \[batch, sequence\]: "
        r"axis 1 is 3 and must be 4, as the sequence of what comes before it",
        attention_mask=np.ones((2, 3), np.int64),
    )


def test_fixed_sizes():
    with pytest.raises(InputError, match=r"past has shape \(1, 1, 0, 3\), but must be .*: axis 1 is 1 and must be 2$"):
        check_cached({"input_ids": np.zeros((1, 1), np.int64), "past": np.zeros((1, 1, 0, 3), np.float32)})


@pytest.mark.parametrize(("shape", "dim"), [((0, 4), "batch"), ((2, 0), "sequence"), ((0, 0), "batch")])
def test_empty(shape, dim):
    refused(
        rf"input_ids has shape \({shape[0]}, {shape[1]}\): {dim} must be at least 1",
        input_ids=np.ones(shape, np.int64),
        attention_mask=np.ones(shape, np.int64),
    )


@pytest.mark.parametrize("value", [-1, 30522, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_ids_out_of_range(value):
    ids = np.ones((2, 4), np.int64)
    ids[0, 3] = value
    refused(rf"input_ids\[0, 3\] is {value}; ids must be in \[0, 30522\)", input_ids=ids)
    refused(rf"input_ids\[0, 3\] is {value}; ids must be in", input_ids=np.asfortranarray(ids))


def test_mask_out_of_range():
    mask = np.ones((2, 4), np.int64)
    mask[1, 0] = 2
    refused(r"attention_mask\[1, 0\] is 2; values must be in \[0, 2\)", attention_mask=mask)


def test_too_long():
    refused(
        r"sequence is 6, but this model takes at most 5; shorten the input",
        input_ids=np.ones((2, 6), np.int64),
        attention_mask=np.ones((2, 6), np.int64),
    )
    with pytest.raises(InputError, match=r"past_sequence \+ sequence is 7, but this model takes at most 6"):
        check_cached({"input_ids": np.zeros((1, 2), np.int64), "past": np.zeros((1, 2, 5, 3), np.float32)})


@pytest.mark.parametrize(("past", "new", "mask", "right"), [(0, 2, 2, True), (3, 1, 4, True), (3, 1, 3, False)])
def test_sums_of_sizes(past, new, mask, right):
    arrays = {
        "attention_mask": np.ones((1, mask), np.int64),
        "input_ids": np.zeros((1, new), np.int64),
        "past": np.zeros((1, 2, past, 3), np.float32),
    }
    if right:
        assert check_sum(arrays)["attention_mask"] is arrays["attention_mask"]
        return
    message = (
        r"attention_mask has shape \(1, 3\), but must be int64 \[batch, past_sequence \+ sequence\]: "
        r"axis 1 is 3 and must be 3 \+ 1$"
    )
    with pytest.raises(InputError, match=message):
        check_sum(arrays)


def test_lists_of_integers():
    ids = check(good(input_ids=[[1, 2, 3, 4], (5, 6, 7, np.int64(8))]))["input_ids"]
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    refused(r"input_ids\[1, 0\] is -5; ids", input_ids=[[1, 2, 3, 4], [-5, 6, 7, 8]])
    refused(r"input_ids has shape \(2, 0\): sequence must be at least 1", input_ids=[[], []])
    refused(r"input_ids has shape \(0,\), but must have 2 dimensions", input_ids=[])


def test_lists_of_floats():
    def past(value):
        values = [[[[value] * 3]] * 2]
        return check_cached({"input_ids": [[1]], "past": values})["past"]

    assert past(0.5).dtype == np.float32
    assert past(2).tolist() == [[[[2.0, 2.0, 2.0]]] * 2]
    assert np.isnan(past(float("nan"))).all()
    for value in (0.1, 1e300, 2**24 + 1, 2**60 + 1):
        with pytest.raises(
            InputError, match=r"past is a list of (float64|int64), which float32 cannot hold without loss"
        ):
            past(value)


@pytest.mark.parametrize("item", [1.0, 0.5, True, "a", None, 2**63, 2**70, {}, b"1"])
def test_lists_that_lose(item):
    message = (
        r"input_ids is (a list of \S+, which int64 cannot hold without loss; convert|no rectangular list of numbers)"
    )
    refused(message, input_ids=[[item] * 4] * 2)


def test_ragged_lists():
    refused(r"input_ids is no rectangular list of numbers: .*; pass int64 \[batch, sequence\]", input_ids=[[1, 2], [1]])


@pytest.mark.parametrize("value", [None, "abc", b"abc", {1, 2}, {}, object(), range(3), iter([[1]])])
def test_other_things(value):
    message = rf"input_ids is (an? {type(value).__name__}|None), but must be a numpy array or a list or a tensor, int64"
    refused(message, input_ids=value)


@pytest.mark.parametrize("value", [3, np.int64(1), np.array(1)])
def test_numbers_have_no_dimensions(value):
    refused(r"input_ids has shape \(\), but must have 2 dimensions, int64 \[batch, sequence\]", input_ids=value)


def test_huge_views_are_refused_before_their_values_are_read():
    huge = np.broadcast_to(np.int64(1), (2**55, 6))  # no address space has room for it
    refused(r"sequence is 6, but this model takes at most 5", input_ids=huge, attention_mask=huge)
    huge = huge[:, :4]
    refused(
        r"input_ids has shape \(36028797018963968, 4\), whose 1152921504606846976 bytes do not fit into memory; pass f",
        input_ids=huge,
        attention_mask=huge,
    )


C = TensorSpec(name="past.key", dtype="float32", shape=("batch", 2, "past_sequence", 3))
CACHED = Signature(
    inputs=(
        IDS,
        TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "total_sequence"), below=2),
        C,
        replace(C, name="past.value"),
        TensorSpec(name="num_logits_to_keep", dtype="int64", shape=(), default=0),
    ),
    outputs=(
        TensorSpec(name="logits", dtype="float32", shape=("batch", "logits_length", 5)),
        TensorSpec(name="present.key", dtype="float32", shape=("batch", 2, "present_sequence", 3)),
    ),
    max_length={},
)


def cached(rows=1, new=2, total=2, room=8, **changes):
    past = np.zeros((rows, 2, room, 3), np.float32)
    arrays = {"input_ids": np.ones((rows, new), np.int64), "attention_mask": np.ones((rows, total), np.int64)}
    return InputChecks(CACHED, empty_batch=True)({**arrays, "past.key": past, "past.value": past, **changes})


@pytest.mark.parametrize(
    ("rows", "new", "total", "room"),
    [(1, 2, 2, 0), (3, 4, 4, 0), (1, 3, 8, 5), (1, 3, 8, 9), (2, 1, 4, 3), (2, 4, 4, 9), (0, 2, 5, 3), (1, 2, 6, 6)],
)
def test_past_and_new_tokens(rows, new, total, room):
    assert cached(rows, new, total, room)["attention_mask"].shape == (rows, total)


@pytest.mark.parametrize(
    ("rows", "new", "total", "room", "message"),
    [
        (
            1,
            3,
            2,
            8,
            r"attention_mask tells of 2 tokens \(total_sequence\), but .* 3 new \(sequence\), and the past has 8",
        ),
        (1, 1, 5, 3, r"attention_mask tells of 5 tokens .* there are 1 new .* the past has 3 \(past_sequence\)"),
        # Room for some of the new ones, but not for all: onnxruntime neither writes there nor makes a longer one.
        (1, 3, 6, 4, r"attention_mask tells of 6 tokens .* there are 3 new .* the past has 4 .* room for the new ones"),
        (1, 5, 5, 3, r"attention_mask tells of 5 tokens .* there are 5 new .* the past has 3 "),
        (2, 2, 5, 3, "2 rows of 2 new tokens follow on a past, where several rows go on by one token each"),
    ],
)
def test_past_and_new_tokens_that_do_not_fit(rows, new, total, room, message):
    with pytest.raises(InputError, match=f"^{message}"):
        cached(rows, new, total, room)


@pytest.mark.parametrize(("name", "size", "message"), [
    ("past.value", 7, "axis 2 is 7 and must be 8"), ("past.value", 9, "axis 2 is 9 and must be 8"),
    ("past.key", 9, "axis 2 is 8 and must be 9"),
])  # fmt: skip
def test_each_cache_is_measured(name, size, message):
    with pytest.raises(InputError, match=rf"past.value has shape \(1, 2, \d, 3\), .*: {message}"):
        cached(**{name: np.zeros((1, 2, size, 3), np.float32)})


def test_caches_are_checked_one_by_one():
    with pytest.raises(InputError, match=r"past.value has shape \(2, 8, 3\), but must have 4 dimensions"):
        cached(**{"past.value": np.zeros((2, 8, 3), np.float32)})
    with pytest.raises(InputError, match=r"past.value is float64, but must be float32"):
        cached(**{"past.value": np.zeros((1, 2, 8, 3))})


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_logits_of_the_last_tokens(keep):
    assert cached(new=3, total=3, num_logits_to_keep=keep)["num_logits_to_keep"] == keep


@pytest.mark.parametrize("keep", [4, -1, -(2**63)])
def test_logits_of_tokens_that_there_are_not(keep):
    with pytest.raises(
        InputError, match=rf"^num_logits_to_keep is {keep}, but must be in \[0, 3\], as there are 3 new"
    ):
        cached(new=3, total=3, num_logits_to_keep=keep)


def test_only_what_has_a_default_may_be_left_out():
    assert "num_logits_to_keep" not in cached()
    with pytest.raises(
        InputError, match=r"the input 'attention_mask' is missing; the model takes input_ids, attention_"
    ):
        InputChecks(CACHED)({"input_ids": np.ones((1, 1), np.int64)})


@pytest.mark.parametrize(("keep", "logits"), [({}, 3), ({"num_logits_to_keep": np.array(1)}, 1)])
def test_no_rows_of_a_decoder(keep, logits):
    check = InputChecks(CACHED, empty_batch=True)
    found = check.without_rows(cached(0, 3, 5, 9, **keep))
    assert {name: array.shape for name, array in found.items()} == {
        "logits": (0, logits, 5),
        "present.key": (0, 2, 9, 3),
    }


HIDDEN = TensorSpec(name="hidden", dtype="float16", shape=("batch", "past_sequence + sequence", 4))
ROWS = Signature(inputs=(IDS, PAST), outputs=(HIDDEN,), max_length={})


def no_rows(rows=0, new=3):
    return {"input_ids": np.ones((rows, new), np.int64), "past": np.zeros((rows, 2, 2, 3), np.float32)}


def test_no_rows_in_no_rows_out():
    check_rows = InputChecks(ROWS, empty_batch=True)
    outputs = check_rows.without_rows(check_rows(no_rows()))
    np.testing.assert_array_equal(outputs["hidden"], np.zeros((0, 5, 4), np.float16), strict=True)
    assert list(outputs) == ["hidden"]
    assert check_rows.without_rows(check_rows(no_rows(1))) is None
    with pytest.raises(InputError, match=r"input_ids has shape \(0, 0\): sequence must be at least 1"):
        check_rows(no_rows(new=0))
    with pytest.raises(InputError, match=r"past has shape \(1, 2, 2, 3\), .*axis 0 is 1 and must be 0, as the batch"):
        check_rows({**no_rows(), "past": no_rows(1)["past"]})
    with pytest.raises(InputError, match=r"input_ids has shape \(0, 3\): batch must be at least 1"):
        InputChecks(ROWS)(no_rows())


@pytest.mark.parametrize(
    "signature",
    [
        replace(ROWS, outputs=(replace(HIDDEN, shape=("batch", "found")),)),
        replace(ROWS, outputs=(HIDDEN, replace(HIDDEN, shape=(4,)))),
        replace(ROWS, outputs=(replace(HIDDEN, shape=("sequence", "batch")),)),
        replace(ROWS, outputs=(replace(HIDDEN, shape=()),)),
        replace(ROWS, inputs=(IDS, replace(PAST, shape=(1, 2, "past_sequence", 3)))),
        replace(ROWS, inputs=(IDS, replace(PAST, shape=("sequence", 2, "past_sequence", 3)))),
    ],
)
def test_no_rows_are_refused_where_what_comes_out_is_not_known(signature):
    with pytest.raises(InputError, match=r"input_ids has shape \(0, 3\): batch must be at least 1"):
        InputChecks(signature, empty_batch=True)(no_rows())


def test_subclasses_of_ndarray():
    class Mine(np.ndarray):
        pass

    assert type(check(good(input_ids=np.ones((2, 4), np.int64).view(Mine)))["input_ids"]) is np.ndarray
    refused(r"input_ids is a masked array, whose mask would be lost", input_ids=np.ma.ones((2, 4), np.int64))


anything = st.one_of(
    hnp.arrays(
        st.one_of(st.sampled_from(["int64", ">i8", "int32", "bool", "float32", "uint8"]), hnp.scalar_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    hnp.arrays("int64", st.just((2, 4)), elements=st.integers(-3, 40)),
    st.recursive(st.one_of(st.integers(), st.floats(), st.text(), st.none()), st.lists, max_leaves=8),
)


@given(ids=anything, mask=anything)
def test_malformed_input_is_refused_or_right(ids, mask):
    try:
        checked = check({"input_ids": ids, "attention_mask": mask})
    except InputError:
        return
    for array, below in ((checked["input_ids"], 30522), (checked["attention_mask"], 2)):
        assert array.dtype == np.int64
        assert array.dtype.isnative
        assert array.shape == checked["input_ids"].shape
        assert array.ndim == 2
        assert 1 <= array.shape[1] <= 5
        assert array.min() >= 0
        assert array.max() < below
