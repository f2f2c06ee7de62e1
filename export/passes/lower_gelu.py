"""Write Gelu in an older form, for engines that have no kernel of it."""

import math

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from .writer import Writer


class LowerGelu(InPlacePass):
    """Turn ONNX-20 Gelu into onnxruntime's own Gelu or FastGelu, or write it out.

    Args:
        portable: Whether operators are to be ONNX's own.

    Ensures: the same function.
    """

    def __init__(self, *, portable: bool) -> None:
        super().__init__()
        self.portable = portable

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every such node."""
        found = [node for node in model.graph if node.op_type == "Gelu" and node.domain == ""]
        for node in found:
            (x,) = node.inputs
            assert x is not None
            tanh = node.attributes.get_string("approximate", "none") == "tanh"
            write = Writer(model.graph, node)
            if self.portable:
                result = write("Mul", [write("Mul", [x, write.number(0.5, x)]), _one_plus(write, x, tanh=tanh)])
            else:
                result = write("FastGelu" if tanh else "Gelu", [x], domain="com.microsoft")
            write.finish(result)
            model.graph.remove(node, safe=True)
        return PassResult(model, modified=bool(found))


def _one_plus(write: Writer, x: ir.Value, *, tanh: bool) -> ir.Value:
    """1 + erf(x / √2), or 1 + tanh(√(2 / π) · (x + 0.044715 x³))."""
    if tanh:
        cube = write("Mul", [write("Mul", [write("Mul", [x, x]), x]), write.number(0.044715, x)])
        inner = write("Mul", [write("Add", [x, cube]), write.number(math.sqrt(2 / math.pi), x)])
        odd = write("Tanh", [inner])
    else:
        odd = write("Erf", [write("Div", [x, write.number(math.sqrt(2), x)])])
    return write("Add", [odd, write.number(1.0, x)])
