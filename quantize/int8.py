"""Dynamic int8: weights and embeddings in eight bits, products of activations quantised as they come.

Of the forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest at
many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time. Attention and activations stay in float32.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

from .edit import QuantizedWeight, bias_of, constant_of, initializer, is_lookup, replace, signal_to_noise
from .method import ALPHAS, EPSILON, Method, measure, smoothing
from .observe import Observed
from .rounding import round_symmetric

_GAIN_DB = 0.5
"""How much better a result must get, in dB, to be worth a pass over the activations."""


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
        elif is_lookup(node):
            done += _quantize_embedding(model.graph, node)
    if not done:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantise")
    model.opset_imports.setdefault("com.microsoft", 1)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return done


def _quantize_matmul(graph: ir.Graph, node: ir.Node, observed: Mapping[str, Observed]) -> list[QuantizedWeight]:
    x, weight = node.inputs
    values_KN = constant_of(weight)
    if x is None or weight is None or values_KN is None:
        return []
    seen = observed.get(str(x.name))
    method = Method() if seen is None else choose(values_KN, seen)
    scale_K = np.ones(values_KN.shape[0], np.float32)
    if seen is not None and method.alpha is not None:
        scale_K = smoothing(seen.largest_K, values_KN, method.alpha)
    rounded_KN, scale_1N = round_symmetric(values_KN * scale_K[:, None], axis=0)
    nodes, x, inverse_rms = _prepare(graph, x, method, scale_K, str(weight.name))
    inputs: list[ir.Value | None] = [
        x,
        initializer(graph, f"{weight.name}_int8", rounded_KN),
        initializer(graph, f"{weight.name}_scale", scale_1N[0]),
    ]
    last, bias = bias_of(node, values_KN.shape[1]) or (node, None)
    if bias is not None and inverse_rms is None:
        inputs += [None, bias]  # no zero point: weights are symmetric
    nodes.append(ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, num_outputs=1, name=last.name))
    if inverse_rms is not None:
        nodes.append(ir.node("Div", [nodes[-1].outputs[0], inverse_rms]))
        nodes += [ir.node("Add", [nodes[-1].outputs[0], bias])] if bias is not None else []
    replace(graph, last, nodes)
    return [
        QuantizedWeight(
            name=str(weight.name),
            op="matmul",
            shape=values_KN.shape,
            method=str(method),
            snr_db=signal_to_noise(values_KN, rounded_KN * scale_1N / scale_K[:, None]),
            output_snr_db=None if seen is None else measure(seen, values_KN, [method])[0],
        )
    ]


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
    graph: ir.Graph, x: ir.Value, method: Method, scale_K: npt.NDArray[np.float32], name: str
) -> tuple[list[ir.Node], ir.Value, ir.Value | None]:
    """Divide the input by the smoothing and by its rows' root mean squares.

    Gives the nodes that do, what comes out of them, and the inverse of those root mean squares.
    """
    if not method.passes:
        return [], x, None
    factor = initializer(graph, f"{name}_smoothing", (1 / scale_K).astype(np.float32))
    if not method.by_row:
        node = ir.node("Mul", [x, factor])
    else:
        node = ir.Node(
            "",
            "SimplifiedLayerNormalization",  # onnxruntime's, in ONNX's own domain
            [x, factor],
            [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", EPSILON), ir.AttrInt64("stash_type", 1)],
            num_outputs=2,
        )
    for output in node.outputs:
        output.type = x.type
    node.outputs[0].shape = x.shape
    return [node], node.outputs[0], node.outputs[1] if method.by_row else None


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
    ratio = signal_to_noise(values_VD, rounded_VD * scale_V1)
    return [QuantizedWeight(name=str(table.name), op="embedding", shape=values_VD.shape, method="by row", snr_db=ratio)]
