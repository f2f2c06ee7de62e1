"""Give what is within a branch weights of its own, where onnxruntime would fail to open it otherwise."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class OwnWeights(InPlacePass):
    """Move constants that a DequantizeLinear within a branch reads into the branch.

    onnxruntime 1.32 fuses DequantizeLinear and MatMul there too, and looks for the weight in the branch alone: "Missing
    required weight".

    Ensures: the same function. A constant that several branches read is stored in each.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Move them."""
        modified = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            branch = node.graph
            if (
                branch is model.graph
                or not isinstance(branch, ir.Graph)
                or node.op_type not in ("DequantizeLinear", "Cast")
            ):
                continue
            for place, value in enumerate(node.inputs):
                if value is not None and model.graph.initializers.get(str(value.name)) is value:
                    node.replace_input_with(place, _own(branch, value))
                    modified = True
        if modified:
            for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
                if not model.graph.initializers[name].is_graph_input():
                    del model.graph.initializers[name]
        return PassResult(model, modified=modified)


def _own(branch: ir.Graph, value: ir.Value) -> ir.Value:
    name = f"{value.name}.within.{branch.name}"
    if name not in branch.initializers:
        copy = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
        branch.register_initializer(copy)
    return branch.initializers[name]
