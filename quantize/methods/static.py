"""As dynamic, but activations have a range that calibration data fixed: none sways another, and some are clipped."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

from ..calibration.calibrators import CALIBRATORS, activation_range
from ..calibration.observe import Observed, joined
from .dynamic import look_up, refuse_table
from .edit import initializer, replace
from .hessian import Hessian
from .method import Method, is_share
from .ops import Op, Use
from .rounding import round_symmetric
from .smoothing import smoothing
from .static_nodes import scale_and_zero, write_static

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(Method):
    """Weights as in `Dynamic`; activations with one scale that calibration data fixed.

    No search proposes it: a range fits the kind of text that it was taken from. It is for recipes.

    Attributes:
        calibrator: How their range is chosen (`calibrators`).
        alpha: Exponent of smoothing, as in `Dynamic`.
    """

    form: ClassVar = "static"
    calibrator: str = "minmax"
    alpha: float | None = None

    def __str__(self) -> str:
        smooth = [] if self.alpha is None else [f"smooth {self.alpha:g}"]
        return ", ".join(["static", self.calibrator, *smooth])

    @property
    def speed_class(self) -> str:
        """What it does beside the product; which range or exponent does not matter."""
        return f"static {self.alpha is not None}"

    def write(self, graph: ir.Graph, op: Op, observed: Mapping[str, Observed], hessian: Hessian | None) -> str:
        """Quantize an op in place.

        Raises:
            QuantizeError: It is a table, or nothing was seen of its inputs.
        """
        refuse_table(op, self)
        seen = joined(op, observed)
        if seen is None:
            raise QuantizeError(f"{op.name!r} needs calibration data to be static")
        for use in op.uses:
            if use.is_lookup:
                look_up(graph, op, use)
            else:
                _write_product(graph, op, use, self, seen)
        graph.opset_imports.setdefault("com.microsoft", 1)
        return str(self)

    @classmethod
    def fits(cls, name: str, value: Any) -> bool:
        """Whether a field may have a value."""
        return value in CALIBRATORS if name == "calibrator" else value is None or is_share(value)


def _write_product(graph: ir.Graph, op: Op, use: Use, method: Static, seen: Observed) -> None:
    weight_KN, name = np.ascontiguousarray(op.matrix_KN(use)), str(op.weight.name)
    scale_K, low, high = static_range(weight_KN, seen, method)
    rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0)
    values = initializer(graph, f"{name}_int8", rounded_KN)
    scale_N = initializer(graph, f"{name}_scale", scale_1N[0])
    nodes, x = [], use.x
    if method.alpha is not None:
        nodes.append(ir.node("Mul", [x, initializer(graph, f"{name}_smoothing", (1 / scale_K).astype(np.float32))]))
        x = nodes[0].outputs[0]
    nodes += write_static(graph, x, values, scale_N, use.bias, scale_and_zero(low, high), f"{name}_input")
    # Saturation finds the product by the name of the node that gave the result before.
    nodes[-1].name = use.last.name
    replace(graph, use.last, nodes)


def static_range(weight_KN: Floats, seen: Observed, method: Static) -> tuple[Floats, float, float]:
    """The divisors of a static product's inputs (K,), and then their range.

    Args:
        weight_KN: Its weights.
        seen: What goes into it.
        method: How.
    """
    scale_K = np.ones(len(weight_KN), np.float32)
    if method.alpha is not None:
        scale_K = smoothing(seen.largest_K, weight_KN, method.alpha)
    # A fixed range need not leave room for padding.
    values = [rows_RK[real_R] / scale_K for rows_RK, real_R in seen.batches if real_R.any()]
    importance_K = np.square(weight_KN * scale_K[:, None]).sum(axis=1)
    return (scale_K, *activation_range(values, method.calibrator, importance_K))
