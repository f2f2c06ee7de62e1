"""Write attention over a cache as com.microsoft.GroupQueryAttention, whose past and present may be one buffer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

_INT64, _INT32, _FLOAT = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT

_MASKED = float(np.finfo(np.float32).min / 2)
"""Added to the score of a key that may not be seen. Finite, so that no row of scores can become NaN."""


class UseGroupQueryAttention(InPlacePass):
    """Turn ONNX-23 Attention with a past into com.microsoft.GroupQueryAttention.

    Both are causal attention of S new tokens behind P earlier ones. ONNX's makes a new tensor of past and new keys each
    time. This one also takes a past that is longer than P, and then writes into it; where past and present are one
    piece of memory nothing is copied. How many tokens there are, T, is read off the mask, which says so in either case.

    Heads whose size is no multiple of 8 stay as they are, since it refuses them.

    Requires: 3-D queries, keys and values; a mask (B or 1, N or 1, S or 1, T).
    Ensures: the same function. What a mask of booleans hides has a large negative number added to its score.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every attention that has a past."""
        shared: dict[tuple[ir.Value, str], _Shared] = {}
        modified = False
        for node in list(model.graph):
            past = node.inputs[4] if node.op_type == "Attention" and len(node.inputs) > 4 else None
            if (
                past is not None
                and node.inputs[3] is not None
                and node.domain == ""
                and past.shape is not None
                and has_groups(past.shape[3])
            ):
                _rewrite(model.graph, node, shared)
                modified = True
        if modified:
            model.opset_imports.setdefault("com.microsoft", 1)
        return PassResult(model, modified=modified)


def has_groups(head_size: object) -> bool:
    """Whether GroupQueryAttention takes heads of this size."""
    return isinstance(head_size, int) and head_size % 8 == 0


class _Shared(NamedTuple):
    """What attentions with one mask have in common: T - 1 of every row, T, and what is added to the scores."""

    lengths: ir.Value
    total: ir.Value
    bias: ir.Value


def _rewrite(graph: ir.Graph, node: ir.Node, shared: dict[tuple[ir.Value, str], _Shared]) -> None:
    query, _, _, mask, *_ = node.inputs
    assert query is not None
    assert mask is not None
    add = _Adder(graph, node)
    # The same mask over queries of as many rows: the layers of a decoder, all but the sliding ones.
    key = mask, "" if query.shape is None else str(query.shape[0])
    if key not in shared or not key[1]:
        shared[key] = _shared_of(mask, query, add)
    lengths, total, bias = shared[key]
    # Cosines, sines and positions are none of its inputs: queries and keys are turned before, since
    # it would read the first position of a row alone.
    past_key, past_value = node.inputs[4:6]
    inputs = [*node.inputs[:3], past_key, past_value, lengths, total, None, None, None, bias]
    attributes = [
        ir.AttrInt64("num_heads", node.attributes["q_num_heads"].as_int()),
        ir.AttrInt64("kv_num_heads", node.attributes["kv_num_heads"].as_int()),
        ir.AttrFloat32("scale", node.attributes["scale"].as_float()),
    ]
    if softcap := node.attributes.get_float("softcap", 0.0):
        attributes.append(ir.AttrFloat32("softcap", softcap))
    new = ir.Node("com.microsoft", "GroupQueryAttention", inputs, attributes, num_outputs=3, name=node.name)
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    # What nobody reads may be missing.
    for before, after in zip(node.outputs[:3], new.outputs, strict=False):
        after.name, after.shape, after.type = before.name, before.shape, before.type
        for index, output in enumerate(graph.outputs):
            if output is before:
                graph.outputs[index] = after
        ir.convenience.replace_all_uses_with(before, after)


def _shared_of(mask: ir.Value, query: ir.Value, add: "_Adder") -> _Shared:
    # T, a scalar, and T - 1 of every row: the rows differ in what their masks hide alone.
    length = add("Shape", [mask], _INT64, start=3)
    total = add("Cast", [add("Reshape", [length, add.constant("no_axis", np.array([], np.int64))], _INT64)], _INT32)
    last = add("Sub", [total, add.constant("one_int32", np.array(1, np.int32))], _INT32)
    lengths = add("Expand", [last, add("Shape", [query], _INT64, start=0, end=1)], _INT32)
    return _Shared(lengths=lengths, total=total, bias=_bias_of(mask, query, add))


class _Adder:
    """Adds nodes before another one, each with the type of its result, which later passes ask for."""

    def __init__(self, graph: ir.Graph, place: ir.Node) -> None:
        self._graph, self._place = graph, place

    def __call__(self, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, **attributes: int) -> ir.Value:
        if op_type == "Cast":
            attributes["to"] = dtype.value
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].type = ir.TensorType(dtype)
        self._graph.insert_before(self._place, node)
        return node.outputs[0]

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """Give a constant, one for all that ask for its name."""
        if name not in self._graph.initializers:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


def _bias_of(mask: ir.Value, query: ir.Value, add: _Adder) -> ir.Value:
    """What to add to the scores, (B or 1, N or 1, S, T)."""
    shape = mask.shape
    if mask.dtype == ir.DataType.BOOL:
        numbers = {"seen": 0.0, "hidden": _MASKED}
        mask = add("Where", [mask, *(add.constant(n, np.array(x, np.float32)) for n, x in numbers.items())], _FLOAT)
        mask.shape = shape
    if shape is not None and shape.rank() == 4 and shape[2] != 1:
        return mask
    one = add.constant("one_axis", np.array([1], np.int64))
    dims = add("Concat", [one, one, add("Shape", [query], _INT64, start=1, end=2), one], _INT64, axis=0)
    return add("Expand", [mask, dims], _FLOAT)
