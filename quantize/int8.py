"""Dynamic int8: weights and embeddings in eight bits, products of activations quantised as they come.

Of the forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest at
many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time. Attention and activations stay in float32.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

from .edit import QuantizedWeight, bias_of, constant_of, initializer, is_lookup, replace, signal_to_noise


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
        elif is_lookup(node):
            done += _quantize_embedding(model.graph, node)
    if not done:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantise")
    model.opset_imports.setdefault("com.microsoft", 1)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return done


def round_symmetric(weight: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a weight to int8 with one scale along all of `axis`.

    Args:
        weight: Float32, 2-D.
        axis: The axis that shares a scale: the inputs of a product, or the entries of an embedding row.

    Returns:
        int8 values in [-127, 127] and the scales, float32 with `axis` kept at size 1; weight ≈ values · scale.
    """
    largest = np.abs(weight).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scale).clip(-127, 127).astype(np.int8), scale


def _quantize_matmul(graph: ir.Graph, node: ir.Node) -> list[QuantizedWeight]:
    x, weight = node.inputs
    values_KN = constant_of(weight)
    if x is None or weight is None or values_KN is None:
        return []
    rounded_KN, scale_1N = round_symmetric(values_KN, axis=0)
    last, bias = node, bias_of(node, values_KN.shape[1])
    inputs: list[ir.Value | None] = [
        x,
        initializer(graph, f"{weight.name}_int8", rounded_KN),
        initializer(graph, f"{weight.name}_scale", scale_1N[0]),
    ]
    if bias is not None:
        last, value = bias
        inputs += [None, value]  # no zero point: weights are symmetric
    new = ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, num_outputs=1, name=last.name)
    replace(graph, last, [new])
    return [_report(weight, "matmul", values_KN, rounded_KN * scale_1N)]


def _quantize_embedding(graph: ir.Graph, node: ir.Node) -> list[QuantizedWeight]:
    table, ids = node.inputs
    values_VD = constant_of(table)
    if table is None or values_VD is None:
        return []
    rounded_VD, scale_V1 = round_symmetric(values_VD, axis=1)
    row = ir.node("Gather", [initializer(graph, f"{table.name}_rows_int8", rounded_VD), ids])
    cast = ir.node("Cast", [row.outputs[0]], {"to": ir.DataType.FLOAT})
    scale = ir.node("Gather", [initializer(graph, f"{table.name}_rows_scale", scale_V1), ids])
    product = ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=node.name)
    replace(graph, node, [row, cast, scale, product])
    return [_report(table, "embedding", values_VD, rounded_VD * scale_V1)]


def _report(
    value: ir.Value, op: str, exact: npt.NDArray[np.float32], rounded: npt.NDArray[np.float32]
) -> QuantizedWeight:
    snr_db = signal_to_noise(exact, rounded)
    return QuantizedWeight(name=str(value.name), op=op, shape=tuple(exact.shape), snr_db=snr_db)
