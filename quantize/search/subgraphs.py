"""One op by itself as a model: written in any form, run, timed, and put back into its graph.

The same nodes that are measured here are those that ship.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tfm.bundle import scratch_folder, weights_file
from tfm.runtime import count_threads, open_session

from ..calibration.observe import Observed
from ..methods.edit import SHARED, initializer, replace
from ..methods.hessian import Hessian
from ..methods.method import Method
from ..methods.ops import Op, Use, find_ops
from ..portable import LowerBlocks, LowerIntegerProducts

_METHOD = "tfm.method"
"""Key of what was done to a subgraph, in words."""


def subgraph(
    op: Op,
    method: Method,
    observed: Mapping[str, Observed],
    hessian: Hessian | None = None,
    *,
    portable: bool = False,
) -> ir.Model:
    """Make a model of one op in one form.

    Args:
        op: The op, in a float32 graph, which stays as it is.
        method: How to quantize it.
        observed: What goes into products, by the name of the value.
        hessian: Second moments of those; calibrated blocks need them.
        portable: Whether to write it in ONNX's own operators, as far as these have its form.

    Returns:
        A model that takes what the op's uses take, by the names of those values, and gives their results, in their
        order, by those of theirs.
    """
    model = _alone(op)
    # The subgraph has one weight, and so one op.
    (copied,) = find_ops(model.graph)
    model.metadata_props[_METHOD] = method.write(model.graph, copied, observed, hessian)
    if portable:
        ir.passes.Sequential(LowerBlocks(), LowerIntegerProducts())(model)
    _drop_unused(model)
    return model


def describe_subgraph(model: ir.Model) -> str:
    """The method of a subgraph in words."""
    return model.metadata_props[_METHOD]


def size_of_subgraph(model: ir.Model) -> int:
    """Bytes of its constants, but for those that all ops of a graph share."""
    own = [value for name, value in model.graph.initializers.items() if not name.startswith(SHARED)]
    return sum(value.const_value.nbytes for value in own if value.const_value is not None)


def open_subgraph(model: ir.Model, threads: int | None = None) -> Any:
    """Open a subgraph as an `onnxruntime.InferenceSession`; threads: None for as many as there are cores."""
    with scratch_folder() as folder:
        path = Path(folder) / "piece.onnx"
        ir.save(model, path, external_data=weights_file(path.name))
        return open_session(path, "cpu", count_threads(threads))


def splice(graph: ir.Graph, op: Op, written: ir.Model) -> None:
    """Put what `subgraph` made in the place of an op.

    What nothing reads any more stays for `RemoveUnusedNodesPass`.
    """
    graph.opset_imports.update(written.graph.opset_imports)
    known: dict[ir.Value, ir.Value] = {
        value: initializer(graph, name, value.const_value.numpy())
        for name, value in written.graph.initializers.items()
        if value.const_value is not None
    }
    for use, output in zip(op.uses, written.graph.outputs, strict=True):
        known |= {value: use.x for value in written.graph.inputs if value.name == use.x.name}
        # The product keeps its name, by which it is found later; names of the others could come
        # twice.
        nodes = copy_nodes(written, output, known, names={use.node.name, use.last.name})
        result = nodes[-1].outputs[0]
        assert known[output] is result
        replace(graph, use.last, nodes)


def copy_nodes(
    written: ir.Model, output: ir.Value, known: dict[ir.Value, ir.Value], names: Collection[str | None] = ()
) -> list[ir.Node]:
    """Copy the nodes that give one output of a subgraph, in order, the one that gives it last.

    Args:
        written: The subgraph.
        output: One of its outputs.
        known: What its values are in the other graph; the new ones are added.
        names: Those that nodes may keep; the others get new ones.
    """
    # Back from the output, up to what the other graph has already: constants, inputs, and nodes
    # that an earlier output needed too.
    needed, waiting = set(), [output]
    while waiting:
        producer = waiting.pop().producer()
        if producer is not None and producer not in needed:
            needed.add(producer)
            waiting += [value for value in producer.inputs if value is not None and value not in known]
    nodes = []
    for node in written.graph:
        if node in needed and any(value not in known for value in node.outputs):
            copied = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else known[value] for value in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=node.name if node.name in names else None,
            )
            copied.metadata_props.update(node.metadata_props)
            for old, new in zip(node.outputs, copied.outputs, strict=True):
                new.shape, new.type = old.shape, old.type
                known[old] = new
            nodes.append(copied)
    # A stable sort: the order is the subgraph's, but for the one that `replace` expects at the end.
    last = known[output].producer()
    return sorted(nodes, key=lambda node: node is last)


def _alone(op: Op) -> ir.Model:
    """A model of nothing but an op, in float32."""
    x_of: dict[str, ir.Value] = {}
    # Of any shape: it is run on rows alone, too.
    for use in op.uses:
        usual = ir.TensorType(ir.DataType.INT64 if use.is_lookup else ir.DataType.FLOAT)
        x_of.setdefault(str(use.x.name), ir.Value(name=use.x.name, type=use.x.type or usual))
    biases = [use.bias for use in op.uses if use.bias is not None]
    constants = {str(value.name): _shared(value) for value in [op.weight, *biases]}
    # Given to the constructor, for what is registered later may be called as new values are: "val_0".
    graph = ir.Graph(
        list(x_of.values()),
        [],
        nodes=[],
        initializers=list(constants.values()),
        opset_imports=dict(_opsets(op)),
        name="piece",
    )
    for use in op.uses:
        graph.outputs.append(_copy_use(graph, use, x_of[str(use.x.name)], constants[str(op.weight.name)]))
    return ir.Model(graph, ir_version=10)


def _copy_use(graph: ir.Graph, use: Use, x: ir.Value, weight: ir.Value) -> ir.Value:
    nodes: list[ir.Node] = []
    if use.transposed:
        nodes.append(ir.node("Transpose", [weight], {"perm": [1, 0]}))
        weight = nodes[0].outputs[0]
    inputs = [weight, x] if use.is_lookup else [x, weight]
    nodes.append(ir.Node("", use.node.op_type, inputs, num_outputs=1, name=use.node.name))
    if use.bias is not None:
        inputs = [nodes[-1].outputs[0], graph.initializers[str(use.bias.name)]]
        nodes.append(ir.Node("", "Add", inputs, num_outputs=1, name=use.last.name))
    output = nodes[-1].outputs[0]
    output.name, output.type = use.output.name, use.output.type
    graph.extend(nodes)
    return output


def _shared(value: ir.Value) -> ir.Value:
    """Share a constant with another graph."""
    return ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)


def _opsets(op: Op) -> Mapping[str, int]:
    graph = op.uses[0].node.graph
    assert isinstance(graph, ir.Graph)
    return {"": graph.opset_imports[""]}


def _drop_unused(model: ir.Model) -> None:
    graph = model.graph
    outputs = set(graph.outputs)
    # From the end, so that a node whose readers are all gone goes too.
    for node in reversed(list(graph)):
        if not any(value in outputs or value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and value not in outputs]:
        del graph.initializers[name]
