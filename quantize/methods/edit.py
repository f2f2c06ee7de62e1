"""What every form of quantization does to a graph: find a constant weight, put nodes in, report what was rounded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

SHARED = "tfm."
"""What constants' names begin with that hold the same numbers wherever a method needs them: a graph has each once."""

_MIN_ELEMENTS = 256
"""Weights smaller than this stay in float32: there is nothing to gain."""

_ROWS = ir.AttrInt64("axis", 0)
"""Gather's default axis."""


_QUANTIZED = {
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QLinearMatMul",
    "QuantizeLinear",
}
"""Ops that only a quantized graph has."""

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
"""Types of quantized weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """One weight that was rounded.

    Attributes:
        name: The weight's name.
        op: "matmul" or "embedding".
        shape: Its shape.
        method: How, in words.
        snr_db: Signal-to-noise ratio of the rounded weight, in dB.
        output_snr_db: That of the op's result on calibration data; None where there was none.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    method: str
    snr_db: float
    output_snr_db: float | None = None


def constant_of(value: ir.Value | None) -> npt.NDArray[np.float32] | None:
    """Give a 2-D float32 constant worth quantizing.

    Raises:
        QuantizeError: It holds NaN or infinity.
    """
    tensor = None if value is None else value.const_value
    if (
        value is None
        or tensor is None
        or tensor.dtype != ir.DataType.FLOAT
        or len(tensor.shape) != 2
        or tensor.size < _MIN_ELEMENTS
    ):
        return None
    array = tensor.numpy()
    # NaN is both; a mask would cost memory.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise QuantizeError(f"the weight {value.name!r} holds NaN or infinity; integers have no such values")
    return array


def is_lookup(node: ir.Node) -> bool:
    """Whether a node reads rows of a table."""
    return node.op_type == "Gather" and node.domain == "" and node.attributes.get("axis", _ROWS).as_int() == 0


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant that a MatMul multiplies by, or that a Gather looks rows up in."""
    if is_lookup(node):
        return node.inputs[0]
    if node.op_type != "MatMul" or node.domain != "":
        return None
    weight = node.inputs[1]
    # MatMul(x, Transpose(W)), as that of an output head tied to a table: W is the weight.
    producer = None if weight is None else weight.producer()
    if producer is None or producer.op_type != "Transpose" or producer.domain != "":
        return weight
    perm = producer.attributes.get("perm")
    return producer.inputs[0] if perm is None or list(perm.as_ints()) == [1, 0] else weight


def bias_of(node: ir.Node, size: int) -> tuple[ir.Node, ir.Value] | None:
    """Find the Add of a constant vector of the product's `size` that is its one use."""
    # Only a sum that is the product's one reader may move into the kernel: any other would miss the
    # product without bias.
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    bias = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    if bias is None or bias.const_value is None or tuple(bias.const_value.shape) != (size,):
        return None
    return users[0], bias


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Give the graph's initializer of that name; `array` is its content where there is none yet."""
    if name not in graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        graph.register_initializer(value)
    return graph.initializers[name]


def replace(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one; the last of them gives its result, all belong to its op."""
    output, result = old.outputs[0], new[-1].outputs[0]
    # The metadata tells which op of the eager model a node computes; verification reads it.
    for node in new:
        node.metadata_props.update(old.metadata_props)
    result.shape, result.type = output.shape, output.type
    graph.insert_before(old, new)
    # Outputs first: `replace_all_uses_with` refuses a value that is one.
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = result
    ir.convenience.replace_all_uses_with(output, result)
    # After the uses have moved. By its name a value is fed, observed and given as output.
    result.name = output.name
    graph.remove(old, safe=True)


def refuse_quantized(graph: ir.Graph) -> None:
    """Refuse a graph that holds a quantized weight or op.

    Raises:
        QuantizeError: It does; the message names the first such node.
    """
    for node in graph:
        weights = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
        if node.op_type in _QUANTIZED or any(weight.dtype in _INTEGERS for weight in weights):
            name = node.name or node.outputs[0].name
            raise QuantizeError(
                f"the graph {graph.name!r} is quantized already: {name!r} is a {node.op_type} of integers; "
                "quantize the float32 graph that it was made from"
            )
