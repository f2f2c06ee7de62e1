"""Write mish in ops that onnxruntime has fast kernels for: it has none for Mish itself."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from tfm.quantize import initializer, replace


class ExpandMish(InPlacePass):
    """Turn x · tanh(ln(1 + eˣ)) into x / (1 + 2/n) with n = eˣ(eˣ + 2).

    tanh(ln u) = (u² - 1) / (u² + 1), and with u = 1 + eˣ that is n / (n + 2): the same function, whose one special
    function is the exponential. Nothing cancels, and where eˣ or n is infinite or 0 the limits come out: x, and -0.
    onnxruntime 1.32 would expand Mish to Softplus, Tanh and Mul; on its CPU provider, whose Softplus is no vector code,
    that takes more than ten times as long, and its largest error is three times this one's.

    Where every step is rounded to float16, as on CUDA, both forms are off by up to 5e-4, and this one gives -0 below
    x = -11, where mish is above -2e-4: 2/n exceeds 65504 there.

    Requires: nodes named by `NameOps`.
    Ensures: the same function, in the input's dtype.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Expand every Mish."""
        modified = False
        for node in list(model.graph):
            x = node.inputs[0] if node.op_type == "Mish" and node.domain == "" else None
            # Constants must be of the input's type, which an integer or unknown one does not allow.
            if x is None or x.dtype not in (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE):
                continue
            dtype = x.dtype.numpy()
            # One initializer per value and type, shared by all activations of the graph.
            one, two = (initializer(model.graph, f"{value}_{dtype}", np.array(value, dtype)) for value in (1.0, 2.0))
            # Before: Mish(x). After: e = Exp(x), n = e · (e + 2), y = x / (2/n + 1). Dividing twice
            # and not x · n / (n + 2): an infinite n would be inf / inf there.
            exponential = ir.node("Exp", [x])
            sum_ = ir.node("Add", [exponential.outputs[0], two])
            n = ir.node("Mul", [exponential.outputs[0], sum_.outputs[0]])
            inverse = ir.node("Div", [two, n.outputs[0]])
            divisor = ir.node("Add", [inverse.outputs[0], one])
            new = [exponential, sum_, n, inverse, divisor, ir.node("Div", [x, divisor.outputs[0]])]
            # No shapes are inferred after the passes, so each new value is given its own here.
            for index, made in enumerate(new):
                made.name = f"{node.name}_{index}"
                made.outputs[0].shape, made.outputs[0].type = x.shape, ir.TensorType(x.dtype)
            replace(model.graph, node, new)
            modified = True
        return PassResult(model, modified=modified)
