"""Give RotaryEmbedding its cosines and sines for every row of the batch: onnxruntime refuses to run it otherwise."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class ExpandRotaryCaches(InPlacePass):
    """Expand the caches of RotaryEmbedding-23 to the batch, where the node takes no position ids.

    The exporter writes rotary positions as this op, with caches of one row where all rows have the same positions;
    onnxruntime 1.32 wants as many rows as the input has.

    Ensures: the same function, at any batch.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Expand the caches of every such node."""
        modified = False
        for node in list(model.graph):
            # With position ids the op looks rows up in a table (P, I), which has no batch to
            # expand.
            has_places = len(node.inputs) > 3 and node.inputs[3] is not None
            if node.op_type == "RotaryEmbedding" and node.domain == "" and not has_places and not _has_all_rows(node):
                _expand(model.graph, node)
                modified = True
        return PassResult(model, modified=modified)


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    # Before: cos and sin (1, S, I). After: Expand(cos, [B, 1, 1]), (B, S, I), likewise sin. The
    # ones leave S and I as they are, since Expand broadcasts both ways. B is read off the input, as
    # it is dynamic. Each node has a chain of its own; CommonSubexpressionElimination makes one of
    # them.
    rows = ir.Node("", "Shape", [node.inputs[0]], [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)])
    ones = ir.Node("", "Constant", [], [ir.AttrInt64s("value_ints", [1, 1])])
    shape = ir.Node("", "Concat", [rows.outputs[0], ones.outputs[0]], [ir.AttrInt64("axis", 0)])
    caches = [ir.Node("", "Expand", [value, shape.outputs[0]]) for value in node.inputs[1:3]]
    for new in (rows, ones, shape, *caches):
        graph.insert_before(node, new)
    for index, cache in enumerate(caches, 1):
        before = node.inputs[index]
        cache.outputs[0].type = before.type if before is not None else None
        node.replace_input_with(index, cache.outputs[0])


def _has_all_rows(node: ir.Node) -> bool:
    """Whether the shapes say that there is a row of caches for every row of the input."""
    # As text, since a dimension is a number or a symbol. A missing shape counts as different: an
    # Expand too many is right as well, one too few does not run.
    shapes = [None if value is None else value.shape for value in node.inputs[:3]]
    return None not in shapes and len({str(shape[0]) for shape in shapes if shape is not None}) == 1
