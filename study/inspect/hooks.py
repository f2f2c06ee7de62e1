"""Which values of a graph show what a model does: found by the names that the exporter gave its nodes.

A graph that names no ops (of another exporter, say) has none; one that names some shows these.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import onnx_ir as ir

_OP_KEY = "tfm.op"
"""Metadata key of a node: the kind and the path of the op that it belongs to, "linear encoder.layers.0.…"."""

_RESHAPING = ("Cast", "Reshape", "Squeeze", "Transpose")
"""What may stand between a sub-layer's result and the Add: the values stay the same."""

_CACHED = ("com.microsoft", "GroupQueryAttention")

_WEIGHTS_BY = {("", "Attention"): ("qk_matmul_output_mode", 3), _CACHED: ("qk_output", 2)}
"""Attention → the attribute, and its value, by which the fourth output is what the values are weighted by."""

_MASK, _BIAS = 3, 10
"""Where the masks of these stand among their inputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTap:
    """One attention.

    Attributes:
        path: The module, as `named_modules` names it.
        weights: Value that holds the weights, (B, N, S, T).
        mask: Value that says which keys may be attended to, boolean or added to the scores, or the scores themselves;
            broadcasts to (B, N, S, T). None: all may.
        causal: Whether a query sees no later key, whatever the mask says.
    """

    path: str
    weights: str
    mask: str | None
    causal: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsTap:
    """The activation of one feed-forward layer: its argument, and what the second projection reads, each (B, S, F)."""

    path: str
    argument: str
    hidden: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubLayerTap:
    """One residual connection: the stream x (B, S, D) that comes in, what is added to it, and what goes on.

    Attributes:
        path: The module whose result is added; of blocks that run side by side, both, with " + " between.
        before: x.
        added: y, behind the sub-layer's own norm where it has one.
        after: x + y; where a norm follows on the sum (post-norm), what that gives.
    """

    path: str
    before: str
    added: str
    after: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What can be seen of one graph, each in the graph's order; `unseen` are ops that cannot, and why."""

    attentions: tuple[AttentionTap, ...]
    units: tuple[UnitsTap, ...]
    sublayers: tuple[SubLayerTap, ...]
    unseen: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """Of all values that are looked at."""
        names = {name for one in self.attentions for name in (one.weights, one.mask) if name is not None}
        names |= {name for one in self.units for name in (one.argument, one.hidden)}
        return names | {name for one in self.sublayers for name in (one.before, one.added, one.after)}


def find_hooks(model: ir.Model) -> Hooks:
    """Find the attentions, feed-forward layers and residual connections that a graph names.

    Args:
        model: Each of its attentions is given one more output, for the weights.
    """
    groups: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        # Nodes of one op, however many, share the name that the exporter gave them.
        if op := node.metadata_props.get(_OP_KEY):
            groups.setdefault(op, []).append(node)
    attentions, units, unseen = [], [], []
    for op, nodes in groups.items():
        kind, _, path = op.partition(" ")
        if kind in ("attention", "softmax"):
            found = _attention(path, nodes)
            if found is None:
                unseen.append(f"{path}: none of its nodes gives attention weights, so its heads are not shown")
            else:
                attentions.append(found)
        elif kind == "activation" and _layer(path) and (seen := _units(path, nodes)) is not None:
            units.append(seen)
    return Hooks(
        attentions=tuple(attentions),
        units=tuple(units),
        sublayers=tuple(_sublayers(groups)),
        unseen=tuple(unseen),
    )


def _attention(path: str, nodes: list[ir.Node]) -> AttentionTap | None:
    """The weights come from the Attention node, or from the Softmax of an attention that is spelt out."""
    for node in nodes:
        # Spelt out, the mask is in the scores already, which stand in for it.
        if node.op_type == "Softmax":
            scores = node.inputs[0]
            assert scores is not None
            return AttentionTap(path=path, weights=_name(node.outputs[0]), mask=_name(scores), causal=False)
        if (node.domain, node.op_type) in _WEIGHTS_BY:
            weights = _give_weights(node, *_WEIGHTS_BY[node.domain, node.op_type])
            # Over a cache it is causal always.
            cached = (node.domain, node.op_type) == _CACHED
            mask = dict(enumerate(node.inputs)).get(_BIAS if cached else _MASK)
            causal = cached or node.attributes.get_int("is_causal", 0) == 1
            return AttentionTap(path=path, weights=weights, mask=None if mask is None else _name(mask), causal=causal)
    return None


def _give_weights(node: ir.Node, attribute: str, after_softmax: int) -> str:
    """Let an attention give its weights too; name them."""
    # Y, present_key, present_value and the weights: outputs are told by their place, so those in between are there
    # too, without a name.
    node.resize_outputs(4)
    for output in node.outputs[1:3]:
        output.name = output.name or ""
    weights, query = node.outputs[3], node.inputs[0]
    weights.name = f"{node.outputs[0].name}_weights"
    # An output of the graph must have a type, and nobody has inferred this one's.
    weights.dtype = (query.dtype if query is not None else None) or ir.DataType.FLOAT
    node.attributes[attribute] = ir.AttrInt64(attribute, after_softmax)
    return weights.name


def _units(path: str, nodes: list[ir.Node]) -> UnitsTap | None:
    """An activation whose result, or its product with another value, a linear layer reads."""
    inside = set(nodes)
    # What comes from outside and is no constant: exactly one, or this is no function of one value.
    entering = {v for n in nodes for v in n.inputs if v is not None and v.producer() not in inside and not _fixed(v)}
    result = _result(nodes)
    if len(entering) != 1 or result is None:
        return None
    hidden: ir.Value | None = result
    # Gated: between the activation and the projection stands the product with the value.
    if not _is_projected(result):
        products = [node for node in result.consumers() if node.op_type == "Mul"]
        hidden = products[0].outputs[0] if len(products) == 1 and _is_projected(products[0].outputs[0]) else None
    if hidden is None:
        return None
    return UnitsTap(path=path.removesuffix(".activation"), argument=_name(entering.pop()), hidden=_name(hidden))


def _sublayers(groups: Mapping[str, list[ir.Node]]) -> Iterable[SubLayerTap]:
    """Follow the result of each linear layer to the Add of a residual connection, where it leads to one."""
    ends = {}
    for op, nodes in groups.items():
        kind, _, path = op.partition(" ")
        result = _result(nodes) if kind == "linear" and _layer(path) else None
        if result is not None:
            ends[result] = _owner(path)
    found: set[ir.Value] = set()
    for end, path in ends.items():
        layer, added = _layer(path), end
        while (step := _only_consumer(added)) is not None:
            # A norm of the same layer on this way is the sub-layer's own: what is added comes
            # behind it.
            if _norm_of(step, layer) or (step.op_type in _RESHAPING and step.inputs[0] is added):
                added = step.outputs[0]
                continue
            other = next((value for value in step.inputs if value is not added), None)
            # The residual's Add belongs to no op, as `x + y` in a forward is nobody's module; that
            # of a bias does, and has a constant beside.
            if step.op_type != "Add" or _OP_KEY in step.metadata_props or other is None or _fixed(other):
                break
            total = step.outputs[0]
            # Two blocks side by side are added up first; their sum is then followed as one.
            if other in ends and _layer(ends[other]) == layer:
                added, path = total, f"{path} + {ends[other]}"
                continue
            # Both of two blocks side by side lead to it.
            if total not in found:
                found.add(total)
                # Post-norm: what goes on is what the norm makes of the sum.
                norm = _only_consumer(total)
                after = norm.outputs[0] if norm is not None and _norm_of(norm, layer) else total
                yield SubLayerTap(path=path, before=_name(other), added=_name(added), after=_name(after))
            break


def _layer(path: str) -> str:
    """A module's path up to its first number; "" where it has none."""
    parts = path.split(".")
    return next((".".join(parts[: index + 1]) for index, part in enumerate(parts) if part.isdigit()), "")


def _owner(path: str) -> str:
    """The module that a linear layer belongs to; itself, where that is the whole layer."""
    path = path.partition(" ")[0]
    owner = path.rpartition(".")[0]
    return path if owner == _layer(path) else owner


def _norm_of(node: ir.Node, layer: str) -> bool:
    kind, _, path = node.metadata_props.get(_OP_KEY, "").partition(" ")
    return kind == "norm" and _layer(path) == layer


def _is_projected(value: ir.Value) -> bool:
    return any(node.metadata_props.get(_OP_KEY, "").startswith("linear ") for node in value.consumers())


def _result(nodes: list[ir.Node]) -> ir.Value | None:
    """The one value that others read of these nodes."""
    inside = set(nodes)
    leaving = [
        v for n in nodes for v in n.outputs if v.is_graph_output() or any(user not in inside for user in v.consumers())
    ]
    return leaving[0] if len(leaving) == 1 else None


def _only_consumer(value: ir.Value) -> ir.Node | None:
    users = set(value.consumers())
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _fixed(value: ir.Value) -> bool:
    return value.const_value is not None or value.is_initializer()


def _name(value: ir.Value) -> str:
    assert value.name
    return value.name
