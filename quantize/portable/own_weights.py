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
        graph, moved = model.graph, 0
        for node in list(ir.traversal.RecursiveGraphIterator(graph)):
            branch = node.graph
            if isinstance(branch, ir.Graph) and branch is not graph and node.op_type in ("DequantizeLinear", "Cast"):
                moved += _move(graph, branch, node)
        if moved:
            unused = [value for value in graph.initializers.values() if not value.uses() and not value.is_graph_input()]
            for value in unused:
                del graph.initializers[str(value.name)]
        return PassResult(model, modified=bool(moved))


def _move(graph: ir.Graph, branch: ir.Graph, node: ir.Node) -> int:
    """Give a node of a branch constants of the branch's own in place of those of the graph; tell how many."""
    outer = [
        (place, value)
        for place, value in enumerate(node.inputs)
        if value is not None and graph.initializers.get(str(value.name)) is value
    ]
    for place, value in outer:
        node.replace_input_with(place, _own(branch, value))
    return len(outer)


def _own(branch: ir.Graph, value: ir.Value) -> ir.Value:
    name = f"{value.name}.within.{branch.name}"
    if name not in branch.initializers:
        copy = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
        branch.register_initializer(copy)
    return branch.initializers[name]
