"""Dynamic int8: weights and embeddings in eight bits, products of activations quantised as they come.

Of the forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest at
many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time. Attention and activations stay in float32.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

_ROWS = ir.AttrInt64("axis", 0)
"""Gather's default axis."""

_MIN_ELEMENTS = 256
"""Weights smaller than this stay in float32: there is nothing to gain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """One weight that became int8.

    Attributes:
        name: The weight's name.
        op: "matmul" or "embedding".
        shape: Its shape.
        snr_db: Signal-to-noise ratio of the rounded weight, in dB.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    snr_db: float


def quantize_int8(model: ir.Model) -> list[QuantizedWeight]:
    """Quantise a float32 ONNX model in place.

    Args:
        model: MatMuls by a constant, with or without a constant bias added, and Gathers from a constant are quantised.

    Returns:
        What was quantised, in the order of the graph.

    Raises:
        QuantizeError: There is nothing to quantise, or a weight is not finite.
    """
    done: list[QuantizedWeight] = []
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.domain == "":
            done += _quantize_matmul(model.graph, node)
        elif node.op_type == "Gather" and node.domain == "":
            done += _quantize_embedding(model.graph, node)
    if not done:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantise")
    model.opset_imports.setdefault("com.microsoft", 1)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return done


def round_symmetric(
    weight: npt.NDArray[np.float32], axis: int, limit: int = 127
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a weight to int8 with one scale along all of `axis`.

    Args:
        weight: Float32, 2-D.
        axis: The axis that shares a scale: the inputs of a product, or the entries of an embedding row.
        limit: Largest value, at most 127; `saturation.SAFE_LIMIT` where products must not saturate.

    Returns:
        int8 values in [-limit, limit] and the scales, float32 with `axis` kept at size 1; weight ≈ values · scale.
    """
    largest = np.abs(weight).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / limit, 1).astype(np.float32)
    return np.rint(weight / scale).clip(-limit, limit).astype(np.int8), scale


def _quantize_matmul(graph: ir.Graph, node: ir.Node) -> list[QuantizedWeight]:
    x, weight = node.inputs
    values_KN = _constant(weight)
    if x is None or weight is None or values_KN is None:
        return []
    rounded_KN, scale_1N = round_symmetric(values_KN, axis=0)
    last, bias = node, _bias(node, values_KN.shape[1])
    inputs: list[ir.Value | None] = [
        x,
        _initializer(graph, f"{weight.name}_int8", rounded_KN),
        _initializer(graph, f"{weight.name}_scale", scale_1N[0]),
    ]
    if bias is not None:
        last, value = bias
        inputs += [None, value]  # no zero point: weights are symmetric
    new = ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, num_outputs=1, name=last.name)
    _replace(graph, last, new)
    return [_report(weight, "matmul", values_KN, rounded_KN * scale_1N)]


def _quantize_embedding(graph: ir.Graph, node: ir.Node) -> list[QuantizedWeight]:
    table, ids = node.inputs
    values_VD = _constant(table)
    if table is None or values_VD is None or node.attributes.get("axis", _ROWS).as_int() != 0:
        return []
    rounded_VD, scale_V1 = round_symmetric(values_VD, axis=1)
    row = ir.node("Gather", [_initializer(graph, f"{table.name}_rows_int8", rounded_VD), ids])
    cast = ir.node("Cast", [row.outputs[0]], {"to": ir.DataType.FLOAT})
    scale = ir.node("Gather", [_initializer(graph, f"{table.name}_rows_scale", scale_V1), ids])
    product = ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=node.name)
    for part in (row, cast, scale):
        part.metadata_props.update(node.metadata_props)
    graph.insert_before(node, [row, cast, scale])
    _replace(graph, node, product)
    return [_report(table, "embedding", values_VD, rounded_VD * scale_V1)]


def _constant(value: ir.Value | None) -> npt.NDArray[np.float32] | None:
    """A 2-D float32 constant worth quantising."""
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
    if not np.isfinite(array).all():
        raise QuantizeError(f"the weight {value.name!r} holds NaN or infinity; int8 has no such values")
    return array


def _bias(node: ir.Node, size: int) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant vector of the product's `size` that is its one use."""
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    bias = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    if bias is None or bias.const_value is None or tuple(bias.const_value.shape) != (size,):
        return None
    return users[0], bias


def _initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    if name not in graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        graph.register_initializer(value)
    return graph.initializers[name]


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    output, result = old.outputs[0], new.outputs[0]
    new.metadata_props.update(old.metadata_props)  # the op it belongs to
    result.shape, result.type = output.shape, output.type
    graph.insert_before(old, new)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = result
    ir.convenience.replace_all_uses_with(output, result)
    result.name = output.name
    graph.remove(old, safe=True)


def _report(
    value: ir.Value, op: str, exact: npt.NDArray[np.float32], rounded: npt.NDArray[np.float32]
) -> QuantizedWeight:
    noise, signal = np.square(exact - rounded).sum(dtype=np.float64), np.square(exact).sum(dtype=np.float64)
    snr_db = float(10 * np.log10(signal / noise)) if noise else float("inf")
    return QuantizedWeight(name=str(value.name), op=op, shape=tuple(exact.shape), snr_db=snr_db)
