"""Write x · sigmoid(αx) as the one op that onnxruntime has a kernel for."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from .name_ops import OP_KEY


class FuseQuickGelu(InPlacePass):
    """Turn Mul(x, Sigmoid(x)) and Mul(x, Sigmoid(Mul(x, α))) of one activation into com.microsoft.QuickGelu.

    With α = 1 that is silu, which torch exports as two nodes at every opset; ONNX's own Swish-24 has no
    kernel on onnxruntime's CPU provider.

    Requires: nodes named by `NameOps`.
    Ensures: the same function in one pass over memory instead of two or three.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fuse every silu and quick-gelu."""
        modified = False
        for product in list(model.graph):
            match = _match(product)
            if match is None:
                continue
            x, alpha = match
            # Before: Mul(x, Sigmoid(x)) or Mul(x, Sigmoid(Mul(x, α))). After: QuickGelu(x,
            # alpha=α). The fused node takes over the op's name, so that it is still compared as
            # this activation.
            fused = ir.Node(
                "com.microsoft", "QuickGelu", [x], [ir.AttrFloat32("alpha", alpha)], num_outputs=1, name=product.name
            )
            fused.metadata_props.update(product.metadata_props)
            old, new = product.outputs[0], fused.outputs[0]
            new.name, new.shape, new.type = old.name, old.shape, old.type
            model.graph.insert_before(product, fused)
            ir.convenience.replace_all_uses_with(old, new)
            modified = True
        # A domain has to be declared where it is used, and only there.
        if modified:
            model.opset_imports.setdefault("com.microsoft", 1)
        return PassResult(model, modified=modified)


def _match(product: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, α) where `product` is the last node of a silu or quick-gelu."""
    # All nodes must belong to one named op: in a gated unit the product of value and gate looks the
    # same, and is not the activation's. A graph output keeps its node, since replace_all_uses_with
    # refuses to replace one.
    op = product.metadata_props.get(OP_KEY)
    if product.op_type != "Mul" or op is None or product.outputs[0].is_graph_output():
        return None
    # Mul commutes, and the exporter writes either order.
    for x, gate in (product.inputs, reversed(product.inputs)):
        sigmoid = _made_by(gate, "Sigmoid", op)
        if x is None or sigmoid is None:
            continue
        if sigmoid.inputs[0] is x:
            return x, 1.0
        scaled = _made_by(sigmoid.inputs[0], "Mul", op)
        alpha = None if scaled is None else _factor(scaled, x)
        if alpha is not None:
            return x, alpha
    return None


def _made_by(value: ir.Value | None, op_type: str, op: str) -> ir.Node | None:
    """The node of this type and of this named op that makes a value."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and node.metadata_props.get(OP_KEY) == op else None


def _factor(product: ir.Node, x: ir.Value) -> float | None:
    """The α of Mul(x, α): one constant number, as it becomes an attribute."""
    for first, second in (product.inputs, reversed(product.inputs)):
        constant = ir.convenience.get_const_tensor(second) if second is not None else None
        if first is x and constant is not None and constant.size == 1:
            return float(constant.numpy().item())
    return None
