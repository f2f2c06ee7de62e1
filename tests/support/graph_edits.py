"""Ways to break an ONNX graph: each edit puts one mistake of an exporter, a pass or a person into it.

Where an edit applies is the name of an op, which stands for its last node, or a function that finds a node.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.export.passes import OP_KEY

Edit = Callable[[ir.Model], None]
FindNode = Callable[[ir.Model], ir.Node]
FindValue = Callable[[ir.Model], ir.Value | None]
Where = str | FindNode

# ------------------------------------------------ finding nodes and values


def nodes_of(model: ir.Model, op: str) -> list[ir.Node]:
    found = [node for node in model.graph if node.metadata_props.get(OP_KEY) == op]
    assert found, f"no node of {op}"
    return found


def find(model: ir.Model, where: Where) -> ir.Node:
    return nodes_of(model, where)[-1] if isinstance(where, str) else where(model)


def first(op: str) -> FindNode:
    """The first node of an op: a linear's product, where the last is its bias."""
    return lambda model: nodes_of(model, op)[0]


def of_type(op_type: str, index: int = 0) -> FindNode:
    return lambda model: [node for node in model.graph if node.op_type == op_type][index]


def reading(weight: str) -> FindNode:
    """The node that reads a weight whose name ends like this."""
    return lambda model: next(
        n for n in model.graph for v in n.inputs if v is not None and str(v.name).endswith(weight)
    )


def feeding(where: Where, *path: int) -> FindNode:
    """The node that feeds argument `path[0]` of a node; further numbers lead further up."""

    def found(model: ir.Model) -> ir.Node:
        node = find(model, where)
        for index in path:
            node = node.inputs[index].producer()
        return node

    return found


def argument(where: Where, index: int) -> FindValue:
    return lambda model: find(model, where).inputs[index]


def result(where: Where, index: int = 0) -> FindValue:
    return lambda model: find(model, where).outputs[index]


# ------------------------------------------------ edits


def both(*edits: Edit) -> Edit:
    def edit(model: ir.Model) -> None:
        for one in edits:
            one(model)

    return edit


def attribute(where: Where, **attributes: Any) -> Edit:
    """Give a node other attributes; those not named stay."""

    def edit(model: ir.Model) -> None:
        for name, value in attributes.items():
            find(model, where).attributes[name] = ir.convenience.convert_attribute(name, value)

    return edit


def becomes(where: Where, op_type: str, *, named: bool = True, domain: str = "", **attributes: Any) -> Edit:
    """Make a node another operator, with these attributes alone."""

    def edit(model: ir.Model) -> None:
        node = find(model, where)
        node.op_type, node.domain = op_type, domain
        node.attributes.clear()
        for name, value in attributes.items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        if not named:
            del node.metadata_props[OP_KEY]

    return edit


def rewired(where: Where, index: int, source: FindValue | None) -> Edit:
    """Feed another value, or none, to argument `index`."""
    return lambda model: find(model, where).replace_input_with(index, None if source is None else source(model))


def swapped(where: Where, one: int, other: int) -> Edit:
    """Swap two arguments."""

    def edit(model: ir.Model) -> None:
        node = find(model, where)
        first, second = node.inputs[one], node.inputs[other]
        node.replace_input_with(one, second)
        node.replace_input_with(other, first)

    return edit


def before(where: Where, index: int, op_type: str, *more: Any, dtype: Any = None, **attributes: Any) -> Edit:
    """Put a node that belongs to no op before an argument; `more` are constants that it takes too."""

    def edit(model: ir.Model) -> None:
        node = find(model, where)
        new = _new_node(model, node.inputs[index], op_type, more, attributes, dtype)
        model.graph.insert_before(node, new)
        node.replace_input_with(index, new.outputs[0])

    return edit


def after(where: Where, op_type: str, *more: Any, named: bool = False, **attributes: Any) -> Edit:
    """Put a node behind a node, for all who read it; `named`: as if it were of the same op."""

    def edit(model: ir.Model) -> None:
        node = find(model, where)
        uses = [(use.node, use.idx) for use in node.outputs[0].uses()]
        new = _new_node(model, node.outputs[0], op_type, more, attributes, None)
        model.graph.insert_after(node, new)
        for user, index in uses:
            user.replace_input_with(index, new.outputs[0])
        if named:
            new.metadata_props.update(node.metadata_props)

    return edit


def bypassed(where: Where, source: int | FindValue = 0) -> Edit:
    """Give all who read a node one of its arguments, or another value, in its place; drop what nobody reads then."""

    def edit(model: ir.Model) -> None:
        node = find(model, where)
        value = node.inputs[source] if isinstance(source, int) else source(model)
        old, is_output = node.outputs[0], node.outputs[0].is_graph_output()
        name = old.name
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        if is_output:
            old.name, value.name = f"{name}_before", name
        common.RemoveUnusedNodesPass()(model)

    return edit


def constant(where: Where, index: int, change: Callable[[Any], Any]) -> Edit:
    """Change a constant that a node reads, for that node alone."""

    def edit(model: ir.Model) -> None:
        node = find(model, where)
        array = node.inputs[index].const_value.numpy()
        changed = np.asarray(change(array.copy()), array.dtype).reshape(array.shape)
        node.replace_input_with(index, _constant(model, changed))

    return edit


def weight(where: Where, amount: float) -> Edit:
    """Change one number of a product's weight."""

    def change(array: Any) -> Any:
        array[3, 5] += amount
        return array

    return constant(where, 1, change)


def last_bit(where: Where, index: int) -> Edit:
    """Change the last bit of one number of a weight."""

    def change(array: Any) -> Any:
        array.flat[-1] = np.nextafter(array.flat[-1], np.float32(np.inf))
        return array

    return constant(where, index, change)


def unnamed(op: str) -> Edit:
    def edit(model: ir.Model) -> None:
        for node in nodes_of(model, op):
            del node.metadata_props[OP_KEY]

    return edit


def output_from(name: str, op_type: str, *sources: FindValue, **attributes: Any) -> Edit:
    """Give an output of the graph another value, that a new node makes of these."""

    def edit(model: ir.Model) -> None:
        index = next(i for i, value in enumerate(model.graph.outputs) if value.name == name)
        old = model.graph.outputs[index]
        new = ir.node(op_type, [source(model) for source in sources], attributes)
        old.name, new.outputs[0].name = f"{name}_before", name
        new.outputs[0].type, new.outputs[0].shape = old.type, old.shape
        model.graph.append(new)
        model.graph.outputs[index] = new.outputs[0]

    return edit


def _new_node(
    model: ir.Model, value: ir.Value, op_type: str, more: tuple[Any, ...], attributes: dict[str, Any], dtype: Any
) -> ir.Node:
    new = ir.node(op_type, [value, *(_constant(model, np.asarray(each)) for each in more)], attributes)
    new.outputs[0].name = f"{value.name}_{op_type}_{len(model.graph)}"
    new.outputs[0].type, new.outputs[0].shape = ir.TensorType(dtype) if dtype else value.type, value.shape
    return new


def _constant(model: ir.Model, array: Any) -> ir.Value:
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    name = f"planted_{len(model.graph.initializers)}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.type, value.shape = ir.TensorType(value.const_value.dtype), value.const_value.shape
    model.graph.register_initializer(value)
    return value
