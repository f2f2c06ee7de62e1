"""Where a graph's weights are, read without the package onnx, and compared with what that package finds."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tfm.bundle.external_data import external_locations


def outside(location, name="w"):
    """A tensor whose weights are elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_of(nodes=(), initializers=(), **more):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    return helper.make_model(graph, **more)


def test_wherever_a_tensor_may_be():
    constant = helper.make_node("Constant", [], ["c"], value=outside("attribute"))
    branch = helper.make_graph([constant], "branch", [], [], [outside("subgraph")])
    deep = helper.make_node("If", ["b"], ["d"], then_branch=branch, else_branch=helper.make_graph([], "e", [], []))
    listed = helper.make_node("X", [], ["e"], domain="d", list=[outside("first of a list"), outside("second")])
    function = helper.make_function(
        "d", "F", [], ["y"], [helper.make_node("Constant", [], ["y"], value=outside("function"))], []
    )
    model = model_of([constant, deep, listed], [outside("initializer")], functions=[function])
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside("sparse values"))
    sparse.indices.CopyFrom(outside("sparse indices"))
    model.training_info.add().algorithm.CopyFrom(branch)
    assert sorted(external_locations(model.SerializeToString())) == sorted(
        [
            "attribute",
            "first of a list",
            "function",
            "initializer",
            "second",
            "sparse indices",
            "sparse values",
            "subgraph",
        ]
    )


def test_what_only_looks_like_a_location():
    """Names and texts that hold the word, and weights that hold the bytes of an entry."""
    entry = onnx.StringStringEntryProto(key="location", value="nowhere").SerializeToString()
    array = np.frombuffer(entry.ljust(32, b"\0"), np.uint8)
    node = helper.make_node("location", ["location"], ["location"], name="location", location=b"location")
    model = model_of([node], [numpy_helper.from_array(array, "location")])
    model.metadata_props.add(key="location", value="of the model")
    assert external_locations(model.SerializeToString()) == []


def test_a_location_that_many_tensors_have_is_listed_once():
    model = model_of(initializers=[outside("a", f"w{i}") for i in range(5)])
    assert external_locations(model.SerializeToString()) == ["a"]


def test_a_graph_whose_weights_are_within():
    assert (
        external_locations(model_of(initializers=[numpy_helper.from_array(np.ones(3), "w")]).SerializeToString()) == []
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x3a\x7flocation", r"ends 119 bytes past its message"),
        (b"\x3a\x0c\x4a\x08location\xff\xff", r"a number at byte 14 does not end"),
        (b"\x3a\x0b\x0clocation\0\0", r"no field of wire type 4"),
    ],
)
def test_what_is_no_message(content, message):
    with pytest.raises(ValueError, match=message):
        external_locations(content)


def test_messages_too_deep_in_each_other():
    content = outside("deep").SerializeToString()
    inner = b""
    for _ in range(60):  # a graph in an attribute of a node of a graph …
        inner = _field(1, _field(5, _field(6, inner + _field(5, content))))
    with pytest.raises(ValueError, match="more than 100 deep"):
        external_locations(_field(7, inner))


@given(st.binary(max_size=200), st.data())
def test_bytes_of_any_kind(noise, data):
    """Locations, or ValueError: nothing else, and at once."""
    content = model_of([helper.make_node("Constant", [], ["c"], value=outside("x"))]).SerializeToString()
    place = data.draw(st.integers(0, len(content)))
    try:
        found = external_locations(content[:place] + noise + content[place:])
    except ValueError:
        return
    assert all(isinstance(location, str) for location in found)


def _field(number, content):
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
