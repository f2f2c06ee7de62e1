"""The ops of a graph that can be quantized: every constant matrix worth it, and the nodes that read it."""

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .edit import bias_of, constant_of, is_lookup, weight_of

_OP_KEY = "tfm.op"
"""Key under which the exporter names the op of the eager model that a node belongs to."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """One node that reads a weight.

    Attributes:
        node: A MatMul by it, itself or transposed by a node; or a Gather of its rows.
        transposed: Whether the MatMul reads it transposed.
        last: What gives the result: the node, or the Add of a bias after it.
        bias: That bias.
    """

    node: ir.Node
    transposed: bool
    last: ir.Node
    bias: ir.Value | None

    @property
    def is_lookup(self) -> bool:
        """Whether rows are looked up."""
        return is_lookup(self.node)

    @property
    def x(self) -> ir.Value:
        """What is multiplied, or the ids of the rows."""
        value = self.node.inputs[1 if self.is_lookup else 0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """The result."""
        return self.last.outputs[0]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One weight and all that reads it: quantized in one way, and stored once.

    Attributes:
        name: The op of the eager model where the graph tells it ("decoder.layers.0.feed_forward.linear1"), else the
            weight's name.
        weight: A float32 constant of two axes.
        uses: In the order of the graph.
    """

    name: str
    weight: ir.Value
    uses: tuple[Use, ...]

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The weight; mapped, where it lies in a file beside the model."""
        assert self.weight.const_value is not None
        return np.asarray(self.weight.const_value.numpy())

    @property
    def tied(self) -> bool:
        """Whether rows are looked up in it, and it is multiplied by, transposed, too."""
        return any(use.is_lookup for use in self.uses) and any(use.transposed for use in self.uses)

    @property
    def kinds(self) -> list[str]:
        """What it is used for: "embedding", "matmul" or both."""
        return list(dict.fromkeys("embedding" if use.is_lookup else "matmul" for use in self.uses))

    def matrix_KN(self, use: Use) -> npt.NDArray[np.float32]:
        """The weight as a MatMul multiplies by it."""
        return self.values.T if use.transposed else self.values


def find_ops(graph: ir.Graph) -> list[Op]:
    """Find what can be quantized, in the order of the graph.

    Raises:
        QuantizeError: A weight is not finite.
    """
    found: dict[ir.Value, list[Use]] = {}
    for node in graph:
        weight = weight_of(node)
        if weight is None or (weight not in found and constant_of(weight) is None):
            continue
        # `weight_of` has looked through a Transpose then.
        transposed = weight not in node.inputs
        assert weight.const_value is not None
        size = int(weight.const_value.shape.numpy()[0 if transposed else 1])
        last, bias = (None if is_lookup(node) else bias_of(node, size)) or (node, None)
        found.setdefault(weight, []).append(Use(node=node, transposed=transposed, last=last, bias=bias))
    names = {weight: _name(weight, uses) for weight, uses in found.items()}
    # Two weights of one op of the eager model cannot both have its name.
    several = {name for name in names.values() if list(names.values()).count(name) > 1}
    return [
        Op(name=str(weight.name) if names[weight] in several else names[weight], weight=weight, uses=tuple(uses))
        for weight, uses in found.items()
    ]


def _name(weight: ir.Value, uses: list[Use]) -> str:
    # "kind name"; a tied table is of several ops, "embedding = head".
    labels = [use.node.metadata_props.get(_OP_KEY, "").partition(" ")[2] for use in uses]
    return " = ".join(dict.fromkeys(labels)) if all(labels) else str(weight.name)
