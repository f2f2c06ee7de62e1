"""Write RMSNormalization in an older form, for engines that have no kernel of it."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from .writer import Writer


class LowerRMSNormalization(InPlacePass):
    """Turn ONNX-23 RMSNormalization into onnxruntime's own SimplifiedLayerNormalization, or write it out.

    Args:
        portable: Whether operators are to be ONNX's own.

    Ensures: the same function.
    """

    def __init__(self, *, portable: bool) -> None:
        super().__init__()
        self.portable = portable

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every such node."""
        found = [node for node in model.graph if node.op_type == "RMSNormalization" and node.domain == ""]
        for node in found:
            x, scale = node.inputs[:2]
            assert x is not None
            axis = node.attributes.get_int("axis", -1)
            epsilon = node.attributes.get_float("epsilon", 1e-5)
            write = Writer(model.graph, node)
            if self.portable:
                squares = write(
                    "Pow", [x, write.number(2.0, x)]
                )  # as onnxruntime looks for it, to make one node of all
                axes = write.integers(range(axis, 0)) if axis < 0 else write.integers(range(axis, _rank(x)))
                mean = write("ReduceMean", [squares, axes], {"keepdims": 1})
                shifted = write("Add", [mean, write.number(float(np.float32(epsilon)), x)])
                result = write("Mul", [write("Div", [x, write("Sqrt", [shifted])]), scale])
            else:  # which onnxruntime keeps in ONNX's own domain
                attributes = {"axis": axis, "epsilon": epsilon, "stash_type": 1}
                result = write("SimplifiedLayerNormalization", [x, scale], attributes)
            write.finish(result)
            model.graph.remove(node, safe=True)
        return PassResult(model, modified=bool(found))


def _rank(x: ir.Value) -> int:
    assert x.shape is not None
    return int(x.shape.rank())
