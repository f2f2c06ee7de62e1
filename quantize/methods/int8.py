"""Dynamic int8 of a whole graph: attention and activations stay in float32."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

from ..calibration.observe import Observed, joined
from .dynamic import Dynamic, write_dynamic
from .edit import QuantizedWeight, refuse_quantized
from .emulation import choose, measure
from .ops import Op, find_ops


def quantize_int8(model: ir.Model, observed: Mapping[str, Observed] | None = None) -> list[QuantizedWeight]:
    """Quantize a float32 ONNX model in place.

    Args:
        model: MatMuls by a constant (itself or transposed by a node), with or without a constant bias added, and
            Gathers from a constant are quantized.
        observed: What goes into each product on calibration data, as `observe` found it: the method of each is chosen
            by it. Without, all are plainly dynamic.

    Returns:
        What was quantized, in the order of the graph.

    Raises:
        QuantizeError: The graph is quantized already, there is nothing to quantize, or a weight is not finite.
    """
    refuse_quantized(model.graph)
    ops = find_ops(model.graph)
    if not ops:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantize")
    done = [weight for op in ops for weight in _quantize(model.graph, op, observed or {})]
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return done


def _quantize(graph: ir.Graph, op: Op, observed: Mapping[str, Observed]) -> list[QuantizedWeight]:
    seen = joined(op, observed)
    product = next((use for use in op.uses if not use.is_lookup), None)
    method, reached = Dynamic(), None
    if seen is not None and product is not None:
        weight_KN = np.ascontiguousarray(op.matrix_KN(product))
        # A tied table is rounded by rows, and cannot be smoothed.
        method = Dynamic() if op.tied else choose(weight_KN, seen)
        reached = measure(seen, weight_KN, [method])[0]
    kinds, shape = op.kinds, op.values.shape
    ratio = write_dynamic(graph, op, method, seen)
    return [
        QuantizedWeight(
            name=str(op.weight.name),
            op=kind,
            shape=shape,
            method="by row" if kind == "embedding" else str(method),
            snr_db=ratio,
            output_snr_db=None if kind == "embedding" else reached,
        )
        for kind in kinds
    ]
