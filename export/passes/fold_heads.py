"""Let Attention split and merge heads itself, in place of Reshape and Transpose around it."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from .name_ops import NOTE_KEY

_SWAP = (0, 2, 1, 3)


class FoldHeads(InPlacePass):
    """Turn (B, N, S, H) attentions whose heads come from a Reshape and a Transpose into (B, S, N·H) ones.

    Requires: ONNX-23 Attention with 4-D inputs of known numbers of heads.
    Ensures: the same function; the Transposes (copies of Q, K, V and Y) of each attention that qualified are gone.
        An attention left as it was says why, under `NOTE_KEY`, unless its keys are an input, laid out by heads.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fold what can be folded."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Attention" and node.domain == "" and "q_num_heads" not in node.attributes:
                reason = _fold(model.graph, node)
                modified |= reason is None
                if reason is not None and not _keys_are_given(node):
                    node.metadata_props[NOTE_KEY] = reason
        return PassResult(model, modified=modified)


def _fold(graph: ir.Graph, node: ir.Node) -> str | None:
    """Fold one attention, or say why not."""
    # Before, for each of Q, K and V:
    # x (B, S, N·H) → Reshape (B, S, N, H) → Transpose (B, N, S, H) → Attention
    # → Transpose (B, S, N, H) → Reshape (B, S, N·H)
    # After: Attention(q, k, v) of (B, S, N·H) each, with the numbers of heads as attributes. Only
    # where all four sides have this shape: the op wants 3-D inputs all together.
    merged = []
    for what, value in zip(("query", "key", "value"), node.inputs, strict=False):
        source = _before_split(value)
        if source is None:
            return f"its {what} is not a Reshape and a Transpose of a (B, S, N·H) value"
        merged.append(source)
    # (B, N, S, H) and (B, K, T, H). In the merged form numbers of heads are attributes, so a
    # dynamic one cannot be told. Values have as many heads as keys.
    shapes = [value.shape for value in node.inputs[:2] if value is not None and value.shape is not None]
    heads = [shape[1] for shape in shapes if isinstance(shape[1], int)]
    if len(heads) != 2:
        return "its numbers of heads are not known"
    # A past and a present are by heads in the op's 3-D form too; nothing here would convert them.
    if len(node.inputs) > 4 or any(output.uses() for output in node.outputs[1:]):
        return "it has a past of its own"
    reshape = _after_merge(node.outputs[0])
    if reshape is None:
        return "its heads are not merged by a Transpose and a Reshape"
    # The new node takes over name, shape and type of the last Reshape's result, behind the merge.
    old = reshape.outputs[0]
    attributes = [
        *node.attributes.values(),
        ir.AttrInt64("q_num_heads", heads[0]),
        ir.AttrInt64("kv_num_heads", heads[1]),
    ]
    # Who asks the split form how many rows or tokens there are asks the merged one. What makes a mask as large as the
    # scores does: it would keep the Transpose alive, and depend on what is no argument of the op any more.
    for split, source in zip(node.inputs, merged, strict=False):
        _ask_merged(graph, split, source)
    # num_outputs=1: its present key and value are read by nobody, as was asked above.
    new = ir.Node("", "Attention", [*merged, *node.inputs[3:]], attributes, num_outputs=1, name=node.name)
    new.metadata_props.update(node.metadata_props)
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = old.name, old.shape, old.type
    graph.insert_before(node, new)
    # Graph outputs first: replace_all_uses_with refuses a value that is still one of them. The old
    # nodes have no user any more, and RemoveUnusedNodesPass takes them out.
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new.outputs[0]
    ir.convenience.replace_all_uses_with(old, new.outputs[0])
    return None


def _keys_are_given(node: ir.Node) -> bool:
    """Whether the keys are an input of the graph, as those of a source are: nothing is to be noted."""
    key = node.inputs[1]
    return key is not None and key.is_graph_input()


def _ask_merged(graph: ir.Graph, split: ir.Value | None, merged: ir.Value) -> None:
    """Let each Shape that reads one length of a (B, N, S, H) value read it off the (B, S, N·H) one."""
    # B and S.
    places = {(0, 1): (0, 1), (2, 3): (1, 2)}
    for node in list(split.consumers()) if split is not None else ():
        if node.op_type != "Shape" or "start" not in node.attributes or "end" not in node.attributes:
            continue
        place = places.get((node.attributes["start"].as_int(), node.attributes["end"].as_int()))
        if place is None:
            continue
        attributes = [ir.AttrInt64("start", place[0]), ir.AttrInt64("end", place[1])]
        new = ir.Node("", "Shape", [merged], attributes, num_outputs=1, name=node.name)
        new.metadata_props.update(node.metadata_props)
        old = node.outputs[0]
        new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = old.name, old.type, old.shape
        graph.insert_before(node, new)
        ir.convenience.replace_all_uses_with(old, new.outputs[0])


def _before_split(value: ir.Value | None) -> ir.Value | None:
    """The (B, S, N·H) value that was reshaped and transposed into `value`."""
    transpose = None if value is None else value.producer()
    if transpose is None or not _swaps_heads(transpose) or transpose.inputs[0] is None:
        return None
    reshape = transpose.inputs[0].producer()
    if reshape is None or reshape.op_type != "Reshape" or reshape.inputs[0] is None:
        return None
    # The input must be (B, S, N·H) already. A Reshape of any other rank may mix lengths and heads.
    shape = reshape.inputs[0].shape
    return reshape.inputs[0] if shape is not None and shape.rank() == 3 else None


def _after_merge(value: ir.Value) -> ir.Node | None:
    """The Reshape to (B, S, N·H) that, behind a Transpose, is the one use of `value`."""
    node = _only_consumer(value)
    if node is None or not _swaps_heads(node):
        return None
    reshape = _only_consumer(node.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    shape = reshape.outputs[0].shape
    return reshape if shape is not None and shape.rank() == 3 else None


def _only_consumer(value: ir.Value) -> ir.Node | None:
    consumers = list(value.consumers())
    # A second reader, or the graph itself, would still want the value by heads.
    return consumers[0] if len(consumers) == 1 and not value.is_graph_output() else None


def _swaps_heads(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == _SWAP
