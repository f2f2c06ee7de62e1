"""Weights and tables in eight bits, activations rounded as they come.

Of the dynamic forms that onnxruntime's CPU provider runs, `DynamicQuantizeMatMul` with the bias inside measured fastest
at many rows. Weights are symmetric with one scale per output channel (Jacob et al. 2018, arXiv:1712.05877, section 2);
activations get one scale and zero point per tensor, at run time.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

from ..calibration.observe import Observed, joined
from .edit import SHARED, initializer, replace
from .hessian import Hessian
from .method import Method, Situation, is_share
from .ops import Op, Use
from .rounding import round_symmetric, snr_db
from .smoothing import smoothing

_ALPHA = 0.8
"""Exponent of smoothing that a search tries: the middle one of those that MiniLM's products were best with."""

LEAST_NORM = 1e-12
"""What a row is divided by at least, which may be all zeros."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic(Method):
    """Weights in 8 bits, one scale per output channel; activations rounded at run time, one scale for the tensor.

    A table that rows are looked up in has one scale per row.

    Attributes:
        alpha: Exponent of smoothing: input channel k is divided by aₖ^α / wₖ^(1-α), its weights multiplied, where aₖ
            and wₖ are the largest magnitudes of both (Xiao et al. 2023, arXiv:2211.10438); None: as they are.
        by_row: Each row is divided by its norm first, and the result multiplied: rows that are small beside others keep
            their digits.
    """

    form: ClassVar = "dynamic"
    alpha: float | None = None
    by_row: bool = False

    def __str__(self) -> str:
        smooth = [] if self.alpha is None else [f"smooth {self.alpha:g}"]
        return ", ".join(["dynamic", *smooth] + ["by row"] * self.by_row)

    @property
    def passes(self) -> int:
        """How many times the activations are read and written on the way, beside the product itself."""
        return int(self.alpha is not None) + 3 * int(self.by_row)

    @property
    def speed_class(self) -> str:
        """What it does beside the product; which exponent does not matter."""
        return f"dynamic {self.alpha is not None} {self.by_row}"

    def write(self, graph: ir.Graph, op: Op, observed: Mapping[str, Observed], hessian: Hessian | None) -> str:
        """Quantize an op in place; see `write_dynamic`."""
        write_dynamic(graph, op, self, joined(op, observed))
        return str(self)

    @classmethod
    def proposals(cls, op: Op, situation: Situation) -> Sequence[Method]:
        """Plain and by row, which need no data and so fit no kind of text more than another; and smoothed.

        Smoothing is for channels that are hundreds of times larger than others, which no rotation by a block spreads
        thin enough. They are the model's own, on any text; its exponent is one for all, and not chosen.

        A decoder multiplies one row at a time, so that reading the weights is what takes time: blocks are smaller and
        more exact. It reads prompts as well, many rows at once, where integers are fastest; these are tried where the
        objective is speed, by row: it then matters little which are read together.
        """
        if situation.precision != "int8":
            return ()
        if situation.kind == "decoder":
            return [cls(by_row=True)] if situation.objective == "speed" and "embedding" not in op.kinds else ()
        if "matmul" not in op.kinds:
            return [cls()]
        smoothed = [] if op.tied else [cls(alpha=_ALPHA)]
        return [cls(), *smoothed] if situation.quick else [cls(), cls(by_row=True), *smoothed]

    @classmethod
    def fixed(cls, op: Op, situation: Situation) -> Method | None:
        """Plain, which anything can be."""
        return cls() if situation.precision == "int8" and situation.kind != "decoder" else None

    @classmethod
    def fits(cls, name: str, value: Any) -> bool:
        """Whether a field may have a value."""
        return isinstance(value, bool) if name == "by_row" else value is None or is_share(value)


def write_dynamic(graph: ir.Graph, op: Op, method: Dynamic, seen: Observed | None) -> float:
    """Quantize an op in place; what nothing reads any more stays for `RemoveUnusedNodesPass`.

    A table that is tied to a product is stored once, by rows: transposed by a node, its rows are the columns that the
    product wants, and its scales those of the columns. It cannot be smoothed.

    Args:
        graph: The graph of the op.
        op: The op.
        method: How.
        seen: What goes into its products; smoothing needs it.

    Returns:
        Signal-to-noise ratio of the rounded weight, in dB.

    Raises:
        QuantizeError: The op is to be smoothed and has no product of its own.
    """
    if method.alpha is not None:
        refuse_table(op, method)
    ratio = float("inf")
    for use in op.uses:
        if use.is_lookup:
            ratio = look_up(graph, op, use)
        elif op.tied and use.transposed:
            rows, scale = _rows(graph, op)
            # (V, D) → (D, V), and the scales (V, 1) → (V,): rows of the table are columns of the product.
            transpose = ir.node("Transpose", [rows], {"perm": [1, 0]})
            flat = initializer(graph, f"{op.weight.name}_flat", np.array([-1], np.int64))
            flatten = ir.node("Reshape", [scale, flat])
            before = [transpose, flatten]
            multiply(graph, use, use.x, transpose.outputs[0], flatten.outputs[0], before, by_row=method.by_row)
            ratio = snr_db(op.values, _held(rows) * _held(scale))
        else:
            ratio = _write_product(graph, op, use, method, seen)
    graph.opset_imports.setdefault("com.microsoft", 1)
    return ratio


def refuse_table(op: Op, method: Method) -> None:
    """Refuse what only products of their own can be quantized by.

    Raises:
        QuantizeError: Rows are looked up in the op's weight.
    """
    if op.tied or "matmul" not in op.kinds:
        raise QuantizeError(f"{op.name!r} is a table that rows are looked up in: it cannot be {str(method)!r}")


def multiply(
    graph: ir.Graph,
    use: Use,
    x: ir.Value,
    values: ir.Value,
    scale: ir.Value,
    before: list[ir.Node],
    *,
    by_row: bool = False,
) -> None:
    """Put an integer product in the place of a float32 one.

    Args:
        graph: The graph.
        use: The product.
        x: What is multiplied, float32 [..., K].
        values: The weights, int8 [K, N].
        scale: Their scales, float32 [N].
        before: The nodes that give these three, as far as they are new.
        by_row: Whether each row is divided by its norm, and its result multiplied.
    """
    # Before: MatMul → Add(bias)
    # After:  DynamicQuantizeMatMul(with bias)
    # by row: Div(x, Max(ReduceL2(x), tiny)) → DynamicQuantizeMatMul → Mul(norm) → Add(bias)
    nodes, norm = list(before), None
    if by_row:
        last = initializer(graph, f"{SHARED}last_axis", np.array([-1], np.int64))
        least = initializer(graph, f"{SHARED}least_norm", np.array(LEAST_NORM, np.float32))
        nodes.append(ir.node("ReduceL2", [x, last], {"keepdims": 1}))
        nodes.append(ir.node("Max", [nodes[-1].outputs[0], least]))
        norm = nodes[-1].outputs[0]
        nodes.append(ir.node("Div", [x, norm]))
        x, nodes[-1].outputs[0].shape = nodes[-1].outputs[0], x.shape
        x.type = ir.TensorType(ir.DataType.FLOAT)
    inputs: list[ir.Value | None] = [x, values, scale]
    # Inside the kernel the bias would be multiplied by the norm, too.
    if use.bias is not None and norm is None:
        # No zero point: weights are symmetric.
        inputs += [None, use.bias]
    nodes.append(ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, num_outputs=1, name=use.last.name))
    if norm is not None:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], norm]))
        nodes += [ir.node("Add", [nodes[-1].outputs[0], use.bias])] if use.bias is not None else []
    replace(graph, use.last, nodes)


def _write_product(graph: ir.Graph, op: Op, use: Use, method: Dynamic, seen: Observed | None) -> float:
    weight_KN, name = np.ascontiguousarray(op.matrix_KN(use)), str(op.weight.name)
    scale_K = np.ones(len(weight_KN), np.float32)
    if method.alpha is not None and seen is not None:
        scale_K = smoothing(seen.largest_K, weight_KN, method.alpha)
    # x / scale · (scale · W): the product stays what it was.
    rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0)
    values = initializer(graph, f"{name}_int8", rounded_KN)
    scale_N = initializer(graph, f"{name}_scale", scale_1N[0])
    x, before = use.x, []
    if method.alpha is not None:
        factor_K = initializer(graph, f"{name}_smoothing", (1 / scale_K).astype(np.float32))
        before = [ir.node("Mul", [x, factor_K])]
        x = before[0].outputs[0]
        x.type, x.shape = use.x.type, use.x.shape
    multiply(graph, use, x, values, scale_N, before, by_row=method.by_row)
    return snr_db(weight_KN, rounded_KN * scale_1N / scale_K[:, None])


def _rows(graph: ir.Graph, op: Op) -> tuple[ir.Value, ir.Value]:
    """A table in 8 bits with one scale per row, [V, D] and [V, 1]."""
    name = str(op.weight.name)
    # Once for all that reads the table.
    if f"{name}_rows_int8" not in graph.initializers:
        rounded_VD, scale_V1 = round_symmetric(op.values, axis=1)
        initializer(graph, f"{name}_rows_int8", rounded_VD)
        initializer(graph, f"{name}_rows_scale", scale_V1)
    return graph.initializers[f"{name}_rows_int8"], graph.initializers[f"{name}_rows_scale"]


def look_up(graph: ir.Graph, op: Op, use: Use) -> float:
    """Look rows up in a table of 8 bits; give the table's signal-to-noise ratio, in dB."""
    rows, scale = _rows(graph, op)
    # Before: Gather
    # After:  Gather(int8) → Cast → Mul(Gather of the rows' scales)
    row = ir.node("Gather", [rows, use.x])
    cast = ir.node("Cast", [row.outputs[0]], {"to": ir.DataType.FLOAT})
    factor = ir.node("Gather", [scale, use.x])
    product = ir.node("Mul", [cast.outputs[0], factor.outputs[0]], name=use.node.name)
    replace(graph, use.node, [row, cast, factor, product])
    return snr_db(op.values, _held(rows) * _held(scale))


def _held(value: ir.Value) -> npt.NDArray[Any]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
