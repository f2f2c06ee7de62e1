"""Weights and tables in eight bits, activations too: rounded as they come, or by scales that calibration fixed.

Of the dynamic forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest
at many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time. `static` says what the static form is.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

from ..calibration.observe import Observed
from .edit import initializer, replace
from .emulation import EPSILON, smoothing, static_range
from .method import Dynamic, Static
from .ops import Op, Use
from .rounding import round_symmetric
from .static import scale_and_zero, write_static


def write_integers(graph: ir.Graph, op: Op, method: Dynamic | Static, seen: Observed | None) -> float:
    """Quantize an op in place; what nothing reads any more stays for `RemoveUnusedNodesPass`.

    A table that is tied to a product is stored once, by rows: transposed by a node, its rows are the columns that the
    product wants, and its scales those of the columns. It cannot be smoothed.

    Args:
        graph: The graph of the op.
        op: The op.
        method: How.
        seen: What goes into its products; smoothing and static ranges need it.

    Returns:
        Signal-to-noise ratio of the rounded weight, in dB.

    Raises:
        QuantizeError: The method needs a product of its own, or calibration data, and there is none.
    """
    if (op.tied or "matmul" not in op.kinds) and (isinstance(method, Static) or method.alpha is not None):
        raise QuantizeError(f"{op.name!r} is a table that rows are looked up in: it cannot be {str(method)!r}")
    ratio = float("inf")
    for use in op.uses:
        if use.is_lookup:
            rows, scale = _rows(graph, op)
            _look_up(graph, use, rows, scale)
            ratio = _snr_db(op.values, rows, scale)
        elif op.tied and use.transposed:
            rows, scale = _rows(graph, op)
            # (V, D) → (D, V), and the scales (V, 1) → (V,): rows of the table are columns of the
            # product.
            transpose = ir.node("Transpose", [rows], {"perm": [1, 0]})
            flat = initializer(graph, f"{op.weight.name}_flat", np.array([-1], np.int64))
            flatten = ir.node("Reshape", [scale, flat])
            by_row = isinstance(method, Dynamic) and method.by_row
            # The norm that finds a row's root mean square wants a factor, and a tied table has no
            # smoothing.
            ones = np.ones(op.values.shape[1], np.float32)
            factor_K = initializer(graph, f"{op.weight.name}_ones", ones) if by_row else None
            values, scale_N = transpose.outputs[0], flatten.outputs[0]
            _multiply(graph, use, Dynamic(by_row=by_row), factor_K, values, scale_N, [transpose, flatten])
            ratio = _snr_db(op.values, rows, scale)
        else:
            ratio = _write_product(graph, op, use, method, seen)
    graph.opset_imports.setdefault("com.microsoft", 1)
    return ratio


def _write_product(graph: ir.Graph, op: Op, use: Use, method: Dynamic | Static, seen: Observed | None) -> float:
    weight_KN, name = np.ascontiguousarray(op.matrix_KN(use)), str(op.weight.name)
    scale_K = np.ones(len(weight_KN), np.float32)
    if method.alpha is not None and seen is not None:
        scale_K = smoothing(seen.largest_K, weight_KN, method.alpha)
    # x / scale · (scale · W): the product stays what it was.
    rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0)
    values = initializer(graph, f"{name}_int8", rounded_KN)
    scale_N = initializer(graph, f"{name}_scale", scale_1N[0])
    smooth = (isinstance(method, Dynamic) and method.by_row) or method.alpha is not None
    factor_K = initializer(graph, f"{name}_smoothing", (1 / scale_K).astype(np.float32)) if smooth else None
    if isinstance(method, Dynamic):
        _multiply(graph, use, method, factor_K, values, scale_N, [])
    elif seen is None:
        raise QuantizeError(f"{op.name!r} needs calibration data to be static")
    else:
        nodes = [] if factor_K is None else [ir.node("Mul", [use.x, factor_K])]
        x = nodes[0].outputs[0] if nodes else use.x
        _, low, high = static_range(weight_KN, seen, method)
        quantization = scale_and_zero(low, high)
        nodes += write_static(graph, x, values, scale_N, use.bias, quantization, f"{name}_input")
        # Saturation finds the product by the name of the node that gave the result before.
        nodes[-1].name = use.last.name
        replace(graph, use.last, nodes)
    return _ratio_db(weight_KN, weight_KN - rounded_KN * scale_1N / scale_K[:, None])


def _rows(graph: ir.Graph, op: Op) -> tuple[ir.Value, ir.Value]:
    """A table in 8 bits with one scale per row, [V, D] and [V, 1]."""
    name = str(op.weight.name)
    # Once for all that reads the table.
    if f"{name}_rows_int8" not in graph.initializers:
        rounded_VD, scale_V1 = round_symmetric(op.values, axis=1)
        initializer(graph, f"{name}_rows_int8", rounded_VD)
        initializer(graph, f"{name}_rows_scale", scale_V1)
    return graph.initializers[f"{name}_rows_int8"], graph.initializers[f"{name}_rows_scale"]


def _look_up(graph: ir.Graph, use: Use, rows: ir.Value, scale: ir.Value) -> None:
    # Before: Gather
    # After:  Gather(int8) → Cast → Mul(Gather of the rows' scales)
    row = ir.node("Gather", [rows, use.x])
    cast = ir.node("Cast", [row.outputs[0]], {"to": ir.DataType.FLOAT})
    factor = ir.node("Gather", [scale, use.x])
    product = ir.node("Mul", [cast.outputs[0], factor.outputs[0]], name=use.node.name)
    replace(graph, use.node, [row, cast, factor, product])


def _multiply(
    graph: ir.Graph,
    use: Use,
    method: Dynamic,
    factor_K: ir.Value | None,
    values: ir.Value,
    scale: ir.Value,
    nodes: list[ir.Node],
) -> None:
    """Put the product in: the input times `factor_K` and over its rows' root mean squares, where the method says so."""
    # Before: MatMul → Add(bias)
    # After, by method:
    # plain      DynamicQuantizeMatMul(with bias)
    # smoothed   Mul(1 / scale) → DynamicQuantizeMatMul(with bias)
    # by row     SimplifiedLayerNormalization → DynamicQuantizeMatMul → Div(1 / rms) → Add(bias)
    x, inverse_rms = use.x, None
    if method.by_row:
        # One node for the root mean squares, the division and the smoothing. Its second output is
        # 1/rms, by which the product is divided to undo it.
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
    # Inside the kernel the bias would be divided, too.
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


def _ratio_db(exact: npt.NDArray[np.float32], error: npt.NDArray[np.float32]) -> float:
    power = np.square(error).sum(dtype=np.float64)
    return float(10 * np.log10(np.square(exact).sum(dtype=np.float64) / power)) if power else float("inf")
