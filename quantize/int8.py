"""Dynamic int8: weights and embeddings in eight bits, products of activations quantised as they come.

Of the forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest at
many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time. Attention and activations stay in float32.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

from .method import ALPHAS, EPSILON, Method, measure, smoothing, snr_db
from .observe import Observed
from .rounding import round_symmetric

_ROWS = ir.AttrInt64("axis", 0)
"""Gather's default axis."""

_MIN_ELEMENTS = 256
"""Weights smaller than this stay in float32: there is nothing to gain."""

_GAIN_DB = 0.5
"""How much better a result must get, in dB, to be worth a pass over the activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """One weight that became int8.

    Attributes:
        name: The weight's name.
        op: "matmul" or "embedding".
        shape: Its shape.
        method: How, in words.
        snr_db: Signal-to-noise ratio of the rounded weight, in dB.
        output_snr_db: That of the op's result on calibration data; of the weight where there was none.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    method: str
    snr_db: float
    output_snr_db: float


def quantize_int8(model: ir.Model, observed: Mapping[str, Observed] | None = None) -> list[QuantizedWeight]:
    """Quantise a float32 ONNX model in place.

    Args:
        model: MatMuls by a constant, with or without a constant bias added, and Gathers from a constant are quantised.
        observed: What goes into each product on calibration data, as `observe` found it: the method of each is chosen
            by it. Without, all are plainly dynamic.

    Returns:
        What was quantised, in the order of the graph.

    Raises:
        QuantizeError: There is nothing to quantise, or a weight is not finite.
    """
    done: list[QuantizedWeight] = []
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.domain == "":
            done += _quantize_matmul(model.graph, node, observed or {})
        elif node.op_type == "Gather" and node.domain == "":
            done += _quantize_embedding(model.graph, node)
    if not done:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantise")
    model.opset_imports.setdefault("com.microsoft", 1)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return done


def _quantize_matmul(graph: ir.Graph, node: ir.Node, observed: Mapping[str, Observed]) -> list[QuantizedWeight]:
    x, weight = node.inputs
    values_KN = _constant(weight)
    if x is None or weight is None or values_KN is None:
        return []
    seen = observed.get(str(x.name))
    method = Method() if seen is None else choose(values_KN, seen)
    scale_K = np.ones(values_KN.shape[0], np.float32)
    if seen is not None and method.alpha is not None:
        scale_K = smoothing(seen.largest_K, values_KN, method.alpha)
    rounded_KN, scale_1N = round_symmetric(values_KN * scale_K[:, None], axis=0)
    last, bias = node, _bias(node, values_KN.shape[1])
    names = dict(node.metadata_props)
    x, rms = _prepare(graph, node, x, method, scale_K, str(weight.name))
    inputs: list[ir.Value | None] = [
        x,
        _initializer(graph, f"{weight.name}_int8", rounded_KN),
        _initializer(graph, f"{weight.name}_scale", scale_1N[0]),
    ]
    if bias is not None:
        last, value = bias
    if bias is not None and rms is None:
        inputs += [None, value]  # no zero point: weights are symmetric
    new = ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, num_outputs=1, name=last.name)
    if rms is not None:
        new.metadata_props.update(names)
        graph.insert_before(last, new)
        new = ir.node("Div", [new.outputs[0], rms])
        if bias is not None:
            new.metadata_props.update(names)
            graph.insert_before(last, new)
            new = ir.node("Add", [new.outputs[0], value])
    _replace(graph, last, new)
    dequantised_KN = rounded_KN * scale_1N / scale_K[:, None]
    ratio = snr_db(values_KN, dequantised_KN) if seen is None else measure(seen, values_KN, [method])[0]
    return [_report(weight, "matmul", values_KN, dequantised_KN, str(method), ratio)]


def choose(weight_KN: npt.NDArray[np.float32], seen: Observed) -> Method:
    """Choose how to quantise a product: as is most exact on what was seen, where that is cheap.

    Rows get scales of their own only where the result is narrower than the input, and multiplying it costs little.
    Smoothing must win `_GAIN_DB` for its pass over the input.

    Args:
        weight_KN: Its weights.
        seen: What goes into it.
    """
    rows = (False, True) if weight_KN.shape[0] > weight_KN.shape[1] else (False,)
    methods = [Method(alpha=alpha, by_row=by_row) for by_row in rows for alpha in (None, *ALPHAS)]
    ratios = dict(zip(methods, measure(seen, weight_KN, methods), strict=True))
    return max(methods, key=lambda method: ratios[method] - _GAIN_DB * bool(method.passes))


def _prepare(
    graph: ir.Graph, node: ir.Node, x: ir.Value, method: Method, scale_K: npt.NDArray[np.float32], name: str
) -> tuple[ir.Value, ir.Value | None]:
    """Divide the input by the smoothing and by its rows' root mean squares; gives it, and the inverse of the latter."""
    if not method.passes:
        return x, None
    factor = _initializer(graph, f"{name}_smoothing", (1 / scale_K).astype(np.float32))
    if not method.by_row:
        new = ir.node("Mul", [x, factor])
    else:
        new = ir.Node(
            "",
            "SimplifiedLayerNormalization",  # onnxruntime's, in ONNX's own domain
            [x, factor],
            [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", EPSILON), ir.AttrInt64("stash_type", 1)],
            num_outputs=2,
        )
    new.metadata_props.update(node.metadata_props)
    for output in new.outputs:
        output.type = x.type
    new.outputs[0].shape = x.shape
    graph.insert_before(node, new)
    return new.outputs[0], new.outputs[1] if method.by_row else None


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
    dequantised = rounded_VD * scale_V1
    return [_report(table, "embedding", values_VD, dequantised, "by row", snr_db(values_VD, dequantised))]


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
    value: ir.Value,
    op: str,
    exact: npt.NDArray[np.float32],
    rounded: npt.NDArray[np.float32],
    method: str,
    ratio: float,
) -> QuantizedWeight:
    return QuantizedWeight(
        name=str(value.name),
        op=op,
        shape=tuple(exact.shape),
        method=method,
        snr_db=snr_db(exact, rounded),
        output_snr_db=ratio,
    )
