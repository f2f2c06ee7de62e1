"""Products of integers by MatMulInteger, in place of onnxruntime's DynamicQuantizeMatMul and MatMulIntegerToFloat."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from ..methods.edit import replace


class LowerIntegerProducts(InPlacePass):
    """Turn DynamicQuantizeMatMul and MatMulIntegerToFloat into MatMulInteger, Cast and Mul, and Add of a bias.

    onnxruntime fuses them back to the two.

    Requires: the subgraph of one op, as `subgraph` makes it; weights without zero points.
    Ensures: the same function, of operators of opset 11.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every such node."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "DynamicQuantizeMatMul":
                _lower_dynamic(model.graph, node)
            elif node.op_type == "MatMulIntegerToFloat":
                x, weight, x_scale, scale, zero, _, bias = [*node.inputs, None, None][:7]
                _multiply(model.graph, node, [], [x, weight, zero], (x_scale, scale), bias)
            else:
                continue
            modified = True
        return PassResult(model, modified=modified)


def _lower_dynamic(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, scale, _, bias = [*node.inputs, None, None][:5]
    rounded = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    values, x_scale, zero = rounded.outputs
    for output, dtype in zip(rounded.outputs, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
        output.type = ir.TensorType(dtype)
    _multiply(graph, node, [rounded], [values, weight, zero], (x_scale, scale), bias)


def _multiply(
    graph: ir.Graph,
    node: ir.Node,
    before: list[ir.Node],
    inputs: list[ir.Value | None],
    scales: tuple[ir.Value | None, ir.Value | None],
    bias: ir.Value | None,
) -> None:
    # The product has the name, by which it is found; the nodes behind it only scale what it gives.
    # x ≈ (values - zero) · x_scale and W ≈ weight · scale: the sum of whole numbers is exact in int32, and scaled once.
    product = ir.node("MatMulInteger", inputs, name=node.name)
    product.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    exact = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT})
    scale = ir.node("Mul", scales)
    nodes = [*before, product, exact, scale, ir.node("Mul", [exact.outputs[0], scale.outputs[0]])]
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    replace(graph, node, nodes)
