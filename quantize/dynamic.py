"""The dynamic form: weights and tables in eight bits, activations rounded as they come.

Of the forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest at
many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .edit import initializer, replace
from .emulation import EPSILON, smoothing
from .method import Dynamic
from .observe import Observed
from .ops import Op, Use
from .rounding import round_symmetric


def write_dynamic(graph: ir.Graph, op: Op, method: Dynamic, seen: Observed | None) -> float:
    """Quantise an op in place; what nothing reads any more stays for `RemoveUnusedNodesPass`.

    A table that is tied to a product is stored once, by rows: transposed by a node, its rows are the columns that the
    product wants, and its scales those of the columns. It cannot be smoothed.

    Args:
        graph: The graph of the op.
        op: The op.
        method: How.
        seen: What goes into its products; smoothing needs it.

    Returns:
        Signal-to-noise ratio of the rounded weight, in dB.
    """
    ratio = float("inf")
    for use in op.uses:
        if use.is_lookup:
            rows, scale = _rows(graph, op, method)
            _look_up(graph, use, rows, scale)
            ratio = _snr_db(op.values, rows, scale)
        elif op.tied and use.transposed:
            rows, scale = _rows(graph, op, method)
            transpose = ir.node("Transpose", [rows], {"perm": [1, 0]})
            flat = initializer(graph, f"{op.weight.name}_flat", np.array([-1], np.int64))
            flatten = ir.node("Reshape", [scale, flat])
            _multiply(graph, use, method, None, transpose.outputs[0], flatten.outputs[0], [transpose, flatten], op.values.shape[1])
            ratio = _snr_db(op.values, rows, scale)
        else:
            weight_KN = op.matrix_KN(use)
            factor_K = None
            scale_K = np.ones(weight_KN.shape[0], np.float32)
            if method.alpha is not None and seen is not None:
                scale_K = smoothing(seen.largest_K, weight_KN, method.alpha)
            rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0)
            if method.passes:
                factor_K = initializer(graph, f"{op.weight.name}_smoothing", (1 / scale_K).astype(np.float32))
            values = initializer(graph, f"{op.weight.name}_int8", rounded_KN)
            scale = initializer(graph, f"{op.weight.name}_scale", scale_1N[0])
            _multiply(graph, use, method, factor_K, values, scale, [], len(weight_KN))
            noise = weight_KN - rounded_KN * scale_1N / scale_K[:, None]
            ratio = _ratio_db(weight_KN, noise)
    graph.opset_imports.setdefault("com.microsoft", 1)
    return ratio


def _rows(graph: ir.Graph, op: Op, method: Dynamic) -> tuple[ir.Value, ir.Value]:
    """A table in 8 bits with one scale per row, [V, D] and [V, 1]."""
    name = str(op.weight.name)
    if f"{name}_rows_int8" not in graph.initializers:
        rounded_VD, scale_V1 = round_symmetric(op.values, axis=1)
        initializer(graph, f"{name}_rows_int8", rounded_VD)
        initializer(graph, f"{name}_rows_scale", scale_V1)
    return graph.initializers[f"{name}_rows_int8"], graph.initializers[f"{name}_rows_scale"]


def _look_up(graph: ir.Graph, use: Use, rows: ir.Value, scale: ir.Value) -> None:
    row = ir.node("Gather", [rows, use.x])
    cast = ir.node("Cast", [row.outputs[0]], {"to": ir.DataType.FLOAT})
    factor = ir.node("Gather", [scale, use.x])
    product = ir.node("Mul", [cast.outputs[0], factor.outputs[0]], name=use.node.name)
    replace(graph, use.node, [row, cast, factor, product])


def _multiply(
    graph: ir.Graph,
    use: Use,
    method: Dynamic,
    factor_K: ir.Value | None,  # noqa: N803 - K is its shape
    values: ir.Value,
    scale: ir.Value,
    nodes: list[ir.Node],
    size: int,
) -> None:
    """Put the product in: the input times `factor_K` and over its rows' root mean squares, where the method says so."""
    x, inverse_rms = use.x, None
    if method.by_row:
        if factor_K is None:
            factor_K = initializer(graph, f"{use.node.inputs[1].name}_ones", np.ones(size, np.float32))
        norm = ir.Node(
            "",
            "SimplifiedLayerNormalization",  # onnxruntime's, in ONNX's own domain
            [x, factor_K],
            [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", EPSILON), ir.AttrInt64("stash_type", 1)],
            num_outputs=2,
        )
        nodes.append(norm)
        inverse_rms = norm.outputs[1]
    elif factor_K is not None:
        nodes.append(ir.node("Mul", [x, factor_K]))
    if method.passes:
        for output in nodes[-1].outputs:
            output.type = x.type
        nodes[-1].outputs[0].shape = x.shape
        x = nodes[-1].outputs[0]
    inputs: list[ir.Value | None] = [x, values, scale]
    if use.bias is not None and inverse_rms is None:
        inputs += [None, use.bias]  # no zero point: weights are symmetric
    nodes.append(ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, num_outputs=1, name=use.last.name))
    if inverse_rms is not None:
        nodes.append(ir.node("Div", [nodes[-1].outputs[0], inverse_rms]))
        nodes += [ir.node("Add", [nodes[-1].outputs[0], use.bias])] if use.bias is not None else []
    replace(graph, use.last, nodes)


def _snr_db(values: npt.NDArray[np.float32], rows: ir.Value, scale: ir.Value) -> float:
    assert rows.const_value is not None
    assert scale.const_value is not None
    return _ratio_db(values, values - rows.const_value.numpy() * scale.const_value.numpy())


def _ratio_db(exact: npt.NDArray[np.float32], noise: npt.NDArray[np.float32]) -> float:
    power = np.square(noise).sum(dtype=np.float64)
    return float(10 * np.log10(np.square(exact).sum(dtype=np.float64) / power)) if power else float("inf")
