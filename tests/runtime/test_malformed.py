"""Calls of real sessions: each malformed in some way is refused by name; each good one gives the same in any form."""

import time
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tfm.bundle.manifest import Signature, TensorSpec, read_manifest
from tfm.errors import InputError
from tfm.runtime import Session

V, ROOM, LIMIT = 12, 4, 8

CALLS = 300
"""Malformed calls per graph, of which there are five."""

SECONDS = 60

CACHED = Signature(
    inputs=(
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=V),
        TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "past_sequence + sequence"), below=2),
        TensorSpec(name="past_key_values.0.key", dtype="float32", shape=("batch", 1, "past_sequence", 2)),
        TensorSpec(name="past_key_values.0.value", dtype="float32", shape=("batch", 1, "past_sequence", 2)),
    ),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 1, "past_sequence", 2)),),
    max_length={"sequence": LIMIT},
)
MODULE = Signature(
    inputs=(
        TensorSpec(name="image", dtype="float16", shape=("batch", 3, "height", "width")),
        TensorSpec(name="scale", dtype="float64", shape=()),
        TensorSpec(name="flag", dtype="bool", shape=("batch",)),
        TensorSpec(name="level", dtype="uint8", shape=("batch", 2), below=5),
    ),
    outputs=(TensorSpec(name="sum", dtype="float64", shape=("batch", 3, "height", "width")),),
    max_length={"height + width": 9},
)
ELEMENTS = {
    "int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE, "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8,
}  # fmt: skip


def sum_of_all(path, signature):
    """Open a graph that gives the sum of its largest input and the greatest values of the others."""
    (output,) = signature.outputs
    largest = max(signature.inputs, key=lambda spec: len(spec.shape))
    nodes, total = [helper.make_node("Cast", [largest.name], ["sum0"], to=ELEMENTS[output.dtype])], "sum0"
    for number, spec in enumerate((spec for spec in signature.inputs if spec is not largest), 1):
        nodes += [
            helper.make_node("Cast", [spec.name], [f"cast{number}"], to=ELEMENTS[output.dtype]),
            helper.make_node("ReduceMax", [f"cast{number}"], [f"max{number}"], keepdims=0),
            helper.make_node("Add", [total, f"max{number}"], [f"sum{number}"]),
        ]
        total = f"sum{number}"
    nodes.append(helper.make_node("Identity", [total], [output.name]))
    inputs, outputs = (
        [helper.make_tensor_value_info(spec.name, ELEMENTS[spec.dtype], spec.shape) for spec in side]
        for side in (signature.inputs, signature.outputs)
    )
    graph = helper.make_graph(nodes, "sum", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return Session(path, signature, "cpu", 1)


@pytest.fixture(params=["encoder", "counter", "copier", "cached", "module"])
def session(request, make_bundle, tmp_path):
    """A graph of an encoder, a decoder, an encoder-decoder, one of fixed sizes; a module."""
    if request.param == "cached":
        return sum_of_all(tmp_path / "cached.onnx", CACHED)
    if request.param == "module":
        return sum_of_all(tmp_path / "module.onnx", MODULE)
    bundle = make_bundle(request.param)
    manifest = read_manifest(bundle)
    role = "decoder" if request.param == "copier" else "model"
    return Session(bundle / manifest.graphs["fp32"][role], manifest.signature[role], "cpu", 1)


def good_call(signature, rng):
    sizes = {"batch": 2, "sequence": 3, "past_sequence": ROOM, "encoder_sequence": 4, "total_sequence": 3,
             "height": 2, "width": 3}  # fmt: skip
    feeds = {}
    for spec in signature.inputs:
        shape = [dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(" + ")) for dim in spec.shape]
        if spec.dtype == "bool":
            values = rng.integers(2, size=shape)
        elif spec.name == "num_logits_to_keep":
            values = rng.integers(sizes["sequence"] + 1)
        elif spec.below is not None:
            values = rng.integers(spec.below, size=shape)
        else:
            values = rng.integers(-8, 8, size=shape) / 4
        feeds[spec.name] = np.asarray(values).astype(spec.dtype)
    return feeds


class Raising:
    def __init__(self, error):
        self.error = error

    def __array__(self, *args, **options):
        raise self.error


def misnamed(draw, feeds, spec):
    return {(draw(st.text(max_size=5)) + "?" if name == spec.name else name): x for name, x in feeds.items()}


def missing(draw, feeds, spec):
    return None if spec.default is not None else {name: x for name, x in feeds.items() if name != spec.name}


def additional(draw, feeds, spec):
    return {**feeds, spec.name + draw(st.text(min_size=1, max_size=3)): feeds[spec.name]}


def of_another_dtype(draw, feeds, spec):
    others = ["int64", "int32", "uint8", "int8", "bool", "float16", "float32", "float64", "complex64", "object"]
    others += ["U3", "V4", "M8[s]", "m8[s]", "i8,f4"]
    dtype = draw(st.sampled_from([other for other in others if other != spec.dtype]))
    return np.zeros(feeds[spec.name].shape, dtype)


def in_the_other_byte_order(draw, feeds, spec):
    if feeds[spec.name].itemsize == 1:
        return None
    return feeds[spec.name].astype(feeds[spec.name].dtype.newbyteorder("S"))


def of_another_rank(draw, feeds, spec):
    array = feeds[spec.name]
    return array[None] if array.ndim == 0 or draw(st.booleans()) else array[0]


def of_a_fixed_size_changed(draw, feeds, spec):
    fixed = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, int)]
    if not fixed:
        return None
    array, axis = feeds[spec.name], draw(st.sampled_from(fixed))
    return np.concatenate([array, array], axis) if draw(st.booleans()) else np.take(array, [], axis)


def of_a_shared_size_changed(draw, feeds, spec):
    array = feeds[spec.name]
    if array.ndim == 0:
        return None
    return np.concatenate([array, array], 0) if draw(st.booleans()) else array[:1]


def of_no_size(draw, feeds, spec):
    axes = [axis for axis, dim in enumerate(spec.shape) if dim != "past_sequence"]
    return np.take(feeds[spec.name], [], draw(st.sampled_from(axes))) if axes else None


def too_long(draw, feeds, spec):
    if spec.shape == () or spec.shape[-1] != "sequence":
        return None
    return {name: np.repeat(x, 20, 1) if x.ndim == 2 else x for name, x in feeds.items()}


def out_of_range(draw, feeds, spec):
    array = feeds[spec.name].copy()
    if spec.name == "num_logits_to_keep":
        value = draw(st.integers(-(2**63), -1) | st.integers(feeds["input_ids"].shape[1] + 1, 2**63 - 1))
    elif spec.below is None:
        return None
    else:
        info = np.iinfo(array.dtype)
        below_0 = st.integers(int(info.min), -1) if info.min < 0 else st.nothing()
        value = draw(below_0 | st.integers(spec.below, int(info.max)))
    array.flat[draw(st.integers(0, array.size - 1))] = value
    order = draw(st.sampled_from("CF"))
    return np.asarray(array, order=order)


def lossy_list(draw, feeds, spec):
    bad = [None, "a", b"1", 1j, {}, 2**64, -(2**70), 10**400, object(), "1"]
    bad += [0.5, float("nan"), float("inf"), 1e300] if "int" in spec.dtype else []
    bad += [2, 0.0] if spec.dtype == "bool" else []
    bad += [0.1] if spec.dtype == "float16" else []
    item = draw(st.sampled_from(bad))
    flat = feeds[spec.name].ravel().tolist()
    flat[draw(st.integers(0, len(flat) - 1))] = item
    value = flat[0]
    for size in feeds[spec.name].shape[::-1]:
        flat = value = [flat[start : start + size] for start in range(0, len(flat), size)]
    return value[0] if isinstance(value, list) else value


def ragged(draw, feeds, spec):
    if feeds[spec.name].ndim == 0:
        return [1]
    rows = feeds[spec.name].tolist()
    return [*rows, draw(st.sampled_from([[], [[]], 1, [[[[[1]]]]], None]))]


def nested(draw, feeds, spec):
    value = feeds[spec.name].tolist()
    for _ in range(draw(st.sampled_from([1, 2, 70, 2000]))):
        value = [value]
    return value


def no_array(draw, feeds, spec):
    things = [None, "abc", b"abc", {}, {1, 2}, object(), range(3), np.ndarray, iter([1]), lambda: 1, Ellipsis]
    things += [torch.int64, np.datetime64(0, "s"), memoryview(b"abc"), Raising(KeyError(1)), Raising(MemoryError())]
    things += [Raising(RecursionError()), Raising(AttributeError("x"))]
    return draw(st.sampled_from(things))


def masked(draw, feeds, spec):
    array = np.ma.array(feeds[spec.name])
    return array if draw(st.booleans()) or array.ndim < 2 else list(array)  # a list of masked rows


def tensor(draw, feeds, spec):
    plain = torch.from_numpy(feeds[spec.name])
    wrong = [plain.to(torch.bfloat16), plain.float().requires_grad_(), plain.to("meta"), plain.to(torch.complex64)]
    wrong += [plain.to_sparse()] if plain.ndim else []
    return draw(st.sampled_from(wrong))


def huge(draw, feeds, spec):
    shape = feeds[spec.name].shape
    if not shape:
        return None
    return np.broadcast_to(feeds[spec.name].flat[0], (2**50, *shape[1:]))


MISTAKES = [
    misnamed,
    missing,
    additional,
    of_another_dtype,
    in_the_other_byte_order,
    of_another_rank,
    of_a_fixed_size_changed,
    of_a_shared_size_changed,
    of_no_size,
    too_long,
    out_of_range,
    lossy_list,
    ragged,
    nested,
    no_array,
    masked,
    tensor,
    huge,
]

once = settings(
    max_examples=CALLS,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_malformed_calls(session, capfd):
    specs, rng = session.signature.inputs, np.random.default_rng(0)
    feeds = good_call(session.signature, rng)
    before = session.run(**feeds)
    made: Counter[str] = Counter()

    @once
    @given(data=st.data())
    def malform(data):
        mistake = data.draw(st.sampled_from(MISTAKES))
        spec = data.draw(st.sampled_from(specs))
        wrong = mistake(data.draw, feeds, spec)
        if wrong is None:  # this input cannot be wrong in this way
            mistake, wrong = misnamed, misnamed(data.draw, feeds, spec)
        call = wrong if isinstance(wrong, dict) and wrong.keys() & feeds.keys() else {**feeds, spec.name: wrong}
        with pytest.raises(InputError) as caught:
            session.run(**call)
        text = str(caught.value)
        assert "onnx" not in text.lower() or "byte order" in text
        assert "\n" not in text
        made[mistake.__name__] += 1

    start = time.perf_counter()
    malform()
    assert time.perf_counter() - start < SECONDS / 5
    assert made.total() >= CALLS
    assert len(made) >= len(MISTAKES) - 3, made  # some do not apply to some graphs
    assert capfd.readouterr() == ("", "")  # onnxruntime prints its errors too
    for name, array in session.run(**feeds).items():
        np.testing.assert_array_equal(array, before[name])


def as_forms(draw, array):
    """The same array in one of the forms that are taken."""
    forms = {
        "list": lambda: array.tolist(),
        "rows": lambda: list(array) if array.ndim else array.tolist(),
        "tuple": lambda: tuple(array.tolist()) if array.ndim else array.tolist(),
        "tensor": lambda: torch.from_numpy(array.copy()),
        "fortran": lambda: np.asfortranarray(array).reshape(array.shape),
        "reversed": lambda: array[::-1].copy()[::-1] if array.ndim else array,
        "strided": lambda: np.repeat(array, 2, -1)[..., ::2] if array.ndim else array,
        "misaligned": lambda: np.frombuffer(b"\0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
        "view": lambda: array.view(type("Mine", (np.ndarray,), {})),
        "dlpack": lambda: Lent(array),
        "array": lambda: Converts(array),
    }
    return forms[draw(st.sampled_from(sorted(forms)))]()


class Lent:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Converts:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_good_calls_in_all_forms(session):
    @settings(once, max_examples=60)
    @given(data=st.data(), seed=st.integers(0, 2**32))
    def call(data, seed):
        feeds = good_call(session.signature, np.random.default_rng(seed))
        plain = session.run(**feeds)
        forms = {name: as_forms(data.draw, array) for name, array in feeds.items()}
        for name, array in session.run(**forms).items():
            assert array.tobytes() == plain[name].tobytes()
            assert array.shape == plain[name].shape

    call()


def test_no_rows(session):
    feeds = good_call(session.signature, np.random.default_rng(0))
    plain = session.run(**feeds)
    nothing = {name: array[:0] if array.ndim else array for name, array in feeds.items()}
    if any(
        spec.shape == () and spec.default is None for spec in session.signature.inputs
    ):  # not every input is of a row, so the outputs may not be either
        with pytest.raises(InputError, match="batch must be at least 1"):
            session.run(**nothing)
        return
    result = session.run(**nothing)
    assert result.keys() == plain.keys()
    for name, array in result.items():
        assert (array.shape, array.dtype) == ((0, *plain[name].shape[1:]), plain[name].dtype)
    last = list(plain)[-1]
    assert list(session.run(outputs=[last], **nothing)) == [last]
