"""The decoder of an encoder-decoder as other readers want it: one file, made of the nodes of the bundle's two graphs.

optimum and transformers.js give a decoder the encoder's last state at every step, and take keys and values of the
source from its first step on. tfm.runtime has them from the encoder's graph, once per source, and needs neither. One
file for all would cost every step of tfm.runtime copies of these keys and values, since what leaves a branch is copied;
and an op in a branch could not be compared with eager by itself. So the two graphs that are quantized, and proved op by
op, stay as they are, and this file is written of their very nodes at the end:

    the decoder's nodes          as they are
    present.N.encoder.…          If(use_cache_branch): past_key_values.N.encoder.…, else what the encoder's graph does
                                 with its last state to make them, with encoder_hidden_states in its place
    decoder_attention_mask       ones, as long as the past and the new tokens: targets are never padded

Its outputs are compared with eager's like those of any graph, and golden cases of both branches go into the bundle.
Large weights are not stored again: the file refers to those beside the other two.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tfm.bundle import MERGED
from tfm.errors import QuantizeError

from .portable import OwnWeights

_HIDDEN, _MASK, _BRANCH = "encoder_hidden_states", "encoder_attention_mask", "use_cache_branch"
_OWN_MASK = "decoder_attention_mask"
_PREFIX = "source."
"""Before the names of what comes from the encoder's graph."""


def write_merged(encoder: Path, decoder: Path) -> Path:
    """Write the file beside those that it is made of.

    Args:
        encoder: The encoder's ONNX file.
        decoder: The decoder's, of the same precision, in the same folder.

    Returns:
        The file: decoder_model_merged.onnx, or with what follows "decoder" in the decoder's name.

    Raises:
        QuantizeError: They are no such graphs.
    """
    path = decoder.with_name(decoder.name.replace("decoder", MERGED, 1))
    # What lies beside the two files stays there; onnx-ir writes references to it.
    made = merge(ir.load(encoder), ir.load(decoder))
    OwnWeights()(made)
    ir.save(made, path)
    return path


def merge(encoder: ir.Model, decoder: ir.Model) -> ir.Model:
    """Make one graph of both.

    Args:
        encoder: Gives last_hidden_state and present.N.encoder.…, of which the second are made of the first.
        decoder: Takes these as past_key_values.N.encoder.…, and decoder_attention_mask; it is changed in place.

    Returns:
        The decoder.

    Raises:
        QuantizeError: They are no such graphs.
    """
    graph = decoder.graph
    inputs = {str(value.name): value for value in graph.inputs}
    past = [value for name, value in inputs.items() if ".encoder." in name]
    if not past or _OWN_MASK not in inputs:
        raise QuantizeError(f"the graph {graph.name!r} is no decoder over an encoder")
    hidden = encoder.graph.outputs[0]
    branch, state = (ir.Value(name=name) for name in (_BRANCH, _HIDDEN))
    branch.type, branch.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([1])
    batch, length = _dimensions(inputs[_MASK], 2)
    width = None if hidden.shape is None else hidden.shape[-1]
    state.type, state.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([batch, length, width])
    # One model has one opset of each domain: that of int8 graphs may be in one of the two alone.
    for opset, version in encoder.opset_imports.items():
        if decoder.opset_imports.setdefault(opset, version) != version:
            raise QuantizeError(f"the graphs are of different opsets of {opset!r}: export the bundle again")
    # Last in the making and first in the graph: each puts its nodes before all that are there.
    presents = _choose(encoder, graph, past, branch, _Projection(encoder, graph, state, inputs[_MASK]))
    _fill_mask(graph, inputs)
    _arrange(graph, state, branch, presents)
    return decoder


class _Projection:
    """Copies of the nodes that make the source's keys and values of the encoder's last state."""

    def __init__(self, encoder: ir.Model, graph: ir.Graph, state: ir.Value, mask: ir.Value) -> None:
        self._graph = graph
        hidden = next(value for value in encoder.graph.outputs if value.name == "last_hidden_state")
        self._nodes: list[ir.Node] = []
        self._copies: dict[ir.Value, ir.Value] = {hidden: state}
        # Of a float16 graph the last state is cast for the output alone: what is read is what it was cast from.
        producer = hidden.producer()
        if producer is not None and producer.op_type == "Cast" and (half := producer.inputs[0]) is not None:
            cast = ir.node("Cast", [state], {"to": ir.AttrInt64("to", int(half.dtype or ir.DataType.FLOAT16))})
            cast.outputs[0].name = f"{_PREFIX}{half.name}"
            cast.outputs[0].type = half.type
            self._nodes.append(cast)
            self._copies[half] = cast.outputs[0]
        # Other inputs tell sizes alone, which are those of the mask.
        self._mask, self._inputs = mask, set(encoder.graph.inputs)

    def of(self, results: Sequence[ir.Value]) -> tuple[list[ir.Node], list[ir.Value]]:
        """Copy all that leads from the last state to some results; give the nodes, and the copies of the results."""
        for value in results:
            self._copy(value)
        return self._nodes, [self._copies[value] for value in results]

    def _copy(self, value: ir.Value) -> None:
        # Depth first, by a stack of its own: a graph may be deep.
        pending = [value]
        while pending:
            value = pending[-1]
            node = value.producer()
            missing = (
                []
                if value in self._copies or node is None
                else [one for one in node.inputs if one is not None and one not in self._copies]
            )
            if missing:
                pending += missing
                continue
            pending.pop()
            if value not in self._copies:
                self._add(value, node)

    def _add(self, value: ir.Value, node: ir.Node | None) -> None:
        if node is None:
            self._copies[value] = self._outside(value)
            return
        if node.op_type != "Shape" and any(one in self._inputs for one in node.inputs):
            raise QuantizeError(
                f"{value.name!r} is made of the encoder's inputs, and not of its last state alone; export it again"
            )
        # Names of their own, since the decoder's graph may have the same ones.
        made = [
            ir.Value(name=f"{_PREFIX}{one.name}", type=one.type, shape=one.shape if one.type else None)
            for one in node.outputs
        ]
        arguments = [None if one is None else self._copies[one] for one in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            arguments,
            node.attributes.values(),
            outputs=made,
            name=f"{_PREFIX}{node.name}",
        )
        copy.metadata_props.update(node.metadata_props)
        self._nodes.append(copy)
        self._copies.update(zip(node.outputs, made, strict=True))

    def _outside(self, value: ir.Value) -> ir.Value:
        """A weight, which goes into the graph around the branch, or an input of the encoder."""
        # Only a Shape reads it, as `_add` sees to.
        if value in self._inputs:
            return self._mask
        made = ir.Value(name=f"{_PREFIX}{value.name}", type=value.type, shape=value.shape)
        made.const_value = value.const_value
        self._graph.register_initializer(made)
        return made


def _choose(
    encoder: ir.Model, graph: ir.Graph, past: Sequence[ir.Value], branch: ir.Value, projection: _Projection
) -> list[ir.Value]:
    """Put the choice between past keys and values and new ones before the decoder's nodes; give what it gives."""
    given = {str(value.name): value for value in encoder.graph.outputs}
    names = [str(value.name).replace("past_key_values.", "present.") for value in past]
    if missing := [name for name in names if name not in given]:
        raise QuantizeError(f"the encoder gives no {missing[0]}: it is not the one of this decoder")
    # Noted before the branches are among them.
    users = [list(value.uses()) for value in past]
    nodes, made = projection.of([given[name] for name in names])
    attributes = [
        ir.AttrGraph("then_branch", _kept(past, names)),
        ir.AttrGraph("else_branch", ir.Graph([], made, nodes=nodes, name="projected")),
    ]
    choice = ir.Node("", "If", [branch], attributes, num_outputs=len(past), name="source_keys_and_values")
    for output, value, name, readers in zip(choice.outputs, past, names, users, strict=True):
        batch, heads, length, size = _dimensions(value, 4)
        output.name, output.type = name, value.type
        output.shape = ir.Shape([batch, heads, length, size])
        # While the source is new there is no past of it.
        value.shape = ir.Shape([batch, heads, f"past_{length}", size])
        for reader, place in readers:
            reader.replace_input_with(place, output)
    graph.insert_before(graph[0], choice)
    return list(choice.outputs)


def _kept(past: Sequence[ir.Value], names: Sequence[str]) -> ir.Graph:
    """The branch that gives what it is given: what leaves a branch must be made in it."""
    nodes = [ir.node("Identity", [value]) for value in past]
    for node, value, name in zip(nodes, past, names, strict=True):
        node.outputs[0].name, node.outputs[0].type = f"{name}.kept", value.type
    return ir.Graph([], [node.outputs[0] for node in nodes], nodes=nodes, name="kept")


def _fill_mask(graph: ir.Graph, inputs: dict[str, ir.Value]) -> None:
    """Make the mask of all tokens, past and new, within the graph."""
    # Any layer's: all have read the same tokens.
    own = next(value for name, value in inputs.items() if name.endswith(".decoder.key"))
    one = ir.Value(name=f"{_PREFIX}one", const_value=ir.tensor(np.array(1, np.int64), name=f"{_PREFIX}one"))
    one.type, one.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    graph.register_initializer(one)
    # (B,), (P,) and (S,), each of one number, to (B, P + S).
    batch = ir.node("Shape", [inputs["input_ids"]], {"start": 0, "end": 1})
    new = ir.node("Shape", [inputs["input_ids"]], {"start": 1, "end": 2})
    before = ir.node("Shape", [own], {"start": 2, "end": 3})
    total = ir.node("Add", [before.outputs[0], new.outputs[0]])
    shape = ir.node("Concat", [batch.outputs[0], total.outputs[0]], {"axis": 0})
    mask = ir.node("Expand", [one, shape.outputs[0]])
    nodes = [batch, new, before, total, shape, mask]
    for node in nodes:
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    mask.outputs[0].shape = inputs[_OWN_MASK].shape
    ir.convenience.replace_all_uses_with(inputs[_OWN_MASK], mask.outputs[0])
    graph.insert_before(graph[0], nodes)
    mask.outputs[0].name = _OWN_MASK
    graph.inputs.remove(inputs[_OWN_MASK])


def _arrange(graph: ir.Graph, state: ir.Value, branch: ir.Value, presents: Sequence[ir.Value]) -> None:
    """Put inputs and outputs in the order that optimum counts on: layer by layer, of its target and of its source."""
    # What is left in the end is what others do not see, since it has a default.
    inputs = {str(value.name): value for value in graph.inputs}
    first = [inputs.pop(name) for name in ("input_ids", _MASK)]
    caches = [inputs.pop(name) for name in sorted_caches(list(inputs))]
    graph.inputs[:] = [*first, state, *caches, branch, *inputs.values()]
    outputs = {str(value.name): value for value in (*graph.outputs, *presents)}
    order = sorted_caches(list(outputs))
    graph.outputs[:] = [outputs["logits"], *(outputs[name] for name in order)]
    graph.name = MERGED


def sorted_caches(names: Sequence[str]) -> list[str]:
    """Pick the names of caches, by layer, those of the target before those of the source, keys before values."""
    parts = [name.split(".") for name in names if name.startswith(("past_key_values.", "present."))]
    # ["present", "0", "decoder", "key"]: "decoder" and "key" come first in the alphabet too.
    return [".".join(part) for part in sorted(parts, key=lambda part: (int(part[1]), *part[2:]))]


def _dimensions(value: ir.Value, rank: int) -> list[int | str]:
    """The sizes and names of a value's dimensions."""
    if value.shape is None or value.shape.rank() != rank:
        raise QuantizeError(f"{value.name!r} is not of {rank} dimensions; export the bundle again")
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
