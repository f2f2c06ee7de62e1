"""What callers pass instead of numpy arrays."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tfm.bundle.manifest import Signature, TensorSpec
from tfm.bundle.messages import kind_of
from tfm.errors import InputError
from tfm.runtime.inputs.arrays import to_array
from tfm.runtime.inputs.batches import check_rows

IDS = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=9)
FLOATS = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
ROWS = Signature(inputs=(IDS,), outputs=(), max_length={"sequence": 4})


class Lent:
    """A tensor of another library: DLPack only, on a device of a given type."""

    def __init__(self, values, device=1):
        self.values, self.device = np.array(values), device

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.device, 0)


class Broken:
    def __array__(self, *args, **options):
        raise KeyError("no such thing")


class Lying:
    def __array__(self, *args, **options):
        return [1, 2]


class Hidden:
    def __array__(self, *args, **options):
        return np.ma.array([[1, 2]], mask=[[False, True]])


ITSELF: list = []
ITSELF += [ITSELF, ITSELF]  # unguarded, numpy looks through 2⁶⁴ lists


def refused(message, value, spec=IDS):
    with pytest.raises(InputError, match=message) as caught:
        to_array(value, spec)
    return caught.value


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.bool, torch.uint8])
def test_tensors_share_memory_and_keep_their_dtype(dtype):
    tensor = torch.ones(2, 3, dtype=dtype)
    array = to_array(tensor, IDS)
    assert type(array) is np.ndarray
    assert array.dtype == str(dtype).removeprefix("torch.")
    tensor[1, 2] = 0
    assert array.tolist() == tensor.tolist()


def test_transposed_tensors():
    tensor = torch.arange(6).reshape(2, 3).T
    assert to_array(tensor, IDS).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_dlpack_shares_memory():
    lent = Lent([[1, 2]])
    assert np.shares_memory(to_array(lent, IDS), lent.values)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(1, 2, requires_grad=True), r"requires grad. Use tensor.detach\(\)"),
        (torch.nn.Parameter(torch.ones(1, 2)), r"requires grad. Use tensor.detach\(\)"),
        (torch.ones(1, 2, dtype=torch.bfloat16), "unsupported ScalarType BFloat16"),
        (torch.ones(1, 2, device="meta"), "meta"),
        (torch.ones(1, 2).to_sparse(), r"Use Tensor.to_dense\(\)"),
        (Broken(), "no such thing"),
        (Lying(), "__array__"),
        (Lent(["text"]), "DLPack"),
    ],
)
def test_what_does_not_convert(tensor, reason):
    message = rf"x is a {type(tensor).__name__} that does not become a numpy array: .*{reason}.*; convert it to one, "
    error = refused(message + r"float32 \[batch, 2\]$", tensor, FLOATS)
    assert error.__cause__ is not None


@pytest.mark.parametrize(("device", "where"), [(2, "a CUDA device"), (10, "a ROCm device"), (99, "a device of .* 99")])
def test_other_memories(device, where):
    refused(rf"input_ids is a Lent in the memory of {where}; copy it to the .* \.cpu\(\)$", Lent([[1]], device))
    with pytest.raises(InputError, match=rf"inputs\[0\] is a Lent in the memory of {where}; .* \.cpu\(\)$"):
        check_rows([Lent([1], device)], ROWS)


def test_pinned_memory_is_the_hosts():
    assert to_array(Lent([[1]], 3), IDS).tolist() == [[1]]


@pytest.mark.parametrize("value", [np.ma.ones((1, 2)), np.ma.masked, Hidden()])
def test_masks_are_not_lost(value):
    refused(r"input_ids is a masked array, whose mask would be lost; pass int64 \[batch, sequence\] and no mask", value)


def test_lists_of_other_things():
    rows = [torch.tensor([1, 2]), np.array([3, 4], ">i8"), (5, np.int8(6)), [torch.tensor(7), np.array(8)]]
    array = to_array(rows, IDS)
    assert (array.dtype, array.tolist()) == (np.dtype("int64"), [[1, 2], [3, 4], [5, 6], [7, 8]])


def test_lists_that_do_not_convert():
    for value, reason in (
        (ITSELF, "it is nested too deeply"),
        ([[[1]]], "it is nested too deeply"),
        ([[1, np.ma.masked]], "a masked array is in it"),
        ([np.ma.array([1, 2], mask=[0, 1])], "a masked array is in it"),
        ([torch.ones(2, requires_grad=True)], "requires grad"),
        ([Broken()], "no such thing"),
        ([[1, 2], [3]], "inhomogeneous"),
    ):
        refused(rf"input_ids is no rectangular list of numbers: .*{reason}.*; pass int64 \[batch, sequence\]$", value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (3, "int64"),
        (3, "float32"),
        (0.5, "float32"),
        (True, "bool"),
        (float("nan"), "float16"),
        (np.int8(3), "int64"),
    ],
)
def test_numbers(value, dtype):
    spec = TensorSpec(name="scale", dtype=dtype, shape=())
    np.testing.assert_array_equal(to_array(value, spec), np.array(value, dtype), strict=True)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.1, "float32"), (np.float64(0.1), "float32"), (1.0, "int64"), (True, "int64"), (300, "int8"), (2**64, "int64")],
)
def test_numbers_that_lose(value, dtype):
    message = rf"scale is the {type(value).__name__} {value}, which {dtype} cannot hold without loss; convert"
    refused(message, value, TensorSpec(name="scale", dtype=dtype, shape=()))


def test_integers_of_more_digits_than_python_prints():
    number, scale = 10**5000, replace(IDS, name="scale", shape=())
    shown = r"(<int that cannot be shown>|\[?<int instance .*>\]?)"  # as this Python's reprlib has it
    refused(rf"scale is the int {shown}, which int64 cannot hold", number, scale)
    with pytest.raises(InputError, match=rf"inputs\[0\] must be .*, but is list (<list that cannot be shown>|{shown})"):
        check_rows([[number]], ROWS)


@pytest.mark.parametrize(
    "row",
    [[1, 2], (1, 2), range(1, 3), np.array([1, 2], np.uint8), np.array([1, 2], ">i4"), np.array([2, 1])[::-1],
     torch.tensor([1, 2]), Lent([1, 2]), [torch.tensor(1), 2], memoryview(np.array([1, 2]))],
)  # fmt: skip
def test_rows(row):
    (checked,) = check_rows([row], ROWS)
    assert checked == [1, 2]
    assert [type(item) for item in checked] == [int, int]


class Silent:
    def __repr__(self):
        raise ValueError("no")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (1, "must be a text or a sequence of token ids, but is int 1"),
        ([1.0], r"must be a text or a sequence of token ids, but is list \[1.0\]"),
        ([True], r"must be a text or a sequence of token ids, but is list \[True\]"),
        ([[1]], r"must be a text or a sequence of token ids, but is list \[\[1\]\]"),
        ([1] * 10**5 + [0.5], r".* but is list \[1, 1, 1, 1, 1, 1, \.\.\.\]$"),
        ([2**64], r".* but is list \[18446744073709551616\]"),
        (b"ab", ".* but is bytes b'ab'"),
        ({1: 2}, r".* but is dict \{1: 2\}"),
        (iter([1]), ".* but is list_iterator <"),
        (Silent(), ".* but is Silent <Silent instance"),
        (np.ma.ones(2, int), "is a masked array"),
        ([[1], [2, 3]], "is no sequence of token ids: "),
        ([1, np.ma.masked], "is no sequence of token ids: a masked array is in it"),
        (ITSELF, "is no sequence of token ids: it is nested too deeply"),
        ([Broken()], "is no sequence of token ids: 'no such thing'"),
        (Broken(), "is a Broken that does not become a numpy array: 'no such thing'; convert it to one, a text or"),
        ([], "has no tokens; leave it out"),
        ([1] * 5, "has 5 tokens, but this model takes at most 4; shorten it"),
    ],
)
def test_wrong_rows(row, message):
    with pytest.raises(InputError, match=rf"inputs\[1\] {message}"):
        check_rows([[1], row], ROWS)


@pytest.mark.parametrize("item", [-1, 9, 2**63, 2**63 - 1, -(2**63)])
def test_ids_of_rows_out_of_range(item):
    with pytest.raises(InputError, match=rf"inputs\[0\]\[2\] is {item}; ids must be in \[0, 9\)"):
        check_rows([np.array([1, 1, item], np.uint64 if item > 2**62 else np.int64)], ROWS)
    unbounded = Signature(inputs=(), outputs=(), max_length={})
    if not 0 <= item < 2**63:
        with pytest.raises(InputError, match=r"ids must be in \[0, 9223372036854775808\)"):
            check_rows([np.array([item], np.uint64 if item > 0 else np.int64)], unbounded)


def test_no_rows():
    assert check_rows([], ROWS) == []


@pytest.mark.parametrize("row", [bytearray(b"ab"), memoryview(b"ab")])
def test_bytes_are_no_ids(row):
    with pytest.raises(
        InputError, match=r"inputs\[1\] must be .*, but is a (bytearray|memoryview) of bytes; decode it"
    ):
        check_rows([[1], row], ROWS)


@pytest.mark.parametrize("mixed", [[True, 2], [2, True], (3, np.True_), [np.array(False), 1]])
def test_bools_are_no_numbers(mixed):
    with pytest.raises(InputError, match=r"inputs\[0\] is no sequence of token ids: it mixes bool with numbers"):
        check_rows([mixed], ROWS)
    refused("input_ids is no rectangular list of numbers: it mixes bool with numbers; pass int64", [list(mixed)])
    refused("input_ids is no rectangular list of numbers: it mixes bool with numbers; pass int64", [[1, 2], mixed])
    flags = TensorSpec(name="flags", dtype="bool", shape=("batch",))
    assert to_array([True, np.False_], flags).tolist() == [True, False]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, "an int"), ("a", "a str"), (np.ones(1), "an ndarray"), (None, "None"), (object(), "an object")],
)
def test_kinds(value, kind):
    assert kind_of(value) == kind
