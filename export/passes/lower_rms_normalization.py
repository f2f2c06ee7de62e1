"""Write RMSNormalization out, for engines that have no kernel of it."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from .writer import Writer


class LowerRMSNormalization(InPlacePass):
    """Turn ONNX-23 RMSNormalization into Pow, ReduceMean, Add, Sqrt, Div and Mul.

    In this order of just these operators every onnxruntime since 1.17 makes one node of them, its own
    SimplifiedLayerNormalization. That is not written, as it lies in ONNX's domain, where checkers know no such name.

    Ensures: the same function, of operators of opset 18.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every such node."""
        found = [node for node in model.graph if node.op_type == "RMSNormalization" and node.domain == ""]
        for node in found:
            x, scale = node.inputs[:2]
            assert x is not None
            axis = node.attributes.get_int("axis", -1)
            epsilon = float(np.float32(node.attributes.get_float("epsilon", 1e-5)))
            write = Writer(model.graph, node)
            squares = write("Pow", [x, write.number(2.0, x)])
            mean = write("ReduceMean", [squares, write.integers(_axes(axis, x))], {"keepdims": 1})
            root = write("Sqrt", [write("Add", [mean, write.number(epsilon, x)])])
            write.finish(write("Mul", [write("Div", [x, root]), scale]))
            model.graph.remove(node, safe=True)
        return PassResult(model, modified=bool(found))


def _axes(axis: int, x: ir.Value) -> range:
    """All from one on."""
    if axis < 0:
        return range(axis, 0)
    assert x.shape is not None
    return range(axis, int(x.shape.rank()))
