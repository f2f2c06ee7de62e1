"""Writes several nodes in the place of one: what the passes that lower an op have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.quantize import initializer

ARGUMENT_KEY, RESULT_KEY = "tfm.arguments", "tfm.results"
"""Metadata keys of a node that several became an op of: which of its inputs carry in which arguments of the op, as
"query:0, past key:1"; and which of the op's results its output is."""


class Writer:
    """Adds nodes before the one that they replace, each with its name and metadata, and the type of its result.

    Args:
        graph: The graph.
        place: The node.
        named: Whether they are of the node's op; else they prepare what several ops read.
    """

    def __init__(self, graph: ir.Graph, place: ir.Node, *, named: bool = True) -> None:
        self._graph, self._place, self._named, self._count = graph, place, named, 0

    def __call__(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        dtype: ir.DataType | None = None,
        domain: str = "",
        enters: Mapping[str, int] | None = None,
    ) -> ir.Value:
        """Add a node of one result.

        Args:
            op_type: Its operator.
            inputs: Its inputs.
            attributes: Its attributes.
            dtype: Of the result; None: of the first input.
            domain: Of the operator.
            enters: Which of the inputs carry in which arguments of the op, by the arguments' names.
        """
        node = self._add(op_type, inputs, attributes, 1, domain)
        first = inputs[0].dtype if inputs and inputs[0] is not None else None
        found = dtype or first
        node.outputs[0].type = None if found is None else ir.TensorType(found)
        if enters:
            node.metadata_props[ARGUMENT_KEY] = ", ".join(f"{name}:{place}" for name, place in enters.items())
        return node.outputs[0]

    def split(self, x: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
        """Cut a value's last dimension into parts of some sizes."""
        node = self._add("Split", [x, self.integers(sizes)], {"axis": -1}, len(sizes), "")
        for output in node.outputs:
            output.type = x.type
        return node.outputs

    def integers(self, values: Sequence[int]) -> ir.Value:
        """Give a constant of int64, one for all that ask for the same."""
        name = f"tfm.int64_{'_'.join(map(str, values))}"
        return self.constant(name, np.array(values, np.int64))

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """Give a constant, one for all that ask for its name."""
        return initializer(self._graph, name, array)

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """Give a constant number of another value's type."""
        dtype = np.dtype(np.float32) if like.dtype is None else like.dtype.numpy()
        return self.constant(f"tfm.{dtype}_{value!r}", np.array(value, dtype))

    def finish(self, result: ir.Value, index: int = 0, what: str = "") -> None:
        """Put a result in the place of one of the node's, under its name.

        Args:
            result: The result, of a node that was added.
            index: Of the node's output.
            what: Which of the op's results it is, where several nodes became the op.
        """
        # By its name a result is fed and compared, so that the new value takes it over.
        old = self._place.outputs[index]
        name = old.name
        old.name = None
        result.name, result.shape, result.type = name, old.shape, old.type
        producer = result.producer()
        assert producer is not None
        if what:
            producer.metadata_props[RESULT_KEY] = what
        for place, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[place] = result
        ir.convenience.replace_all_uses_with(old, result)

    def _add(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Any, outputs: int, domain: str
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, domain=domain)
        if self._named:
            # The first has the name of what it stands for, by which figures are found.
            node.name = f"{self._place.name}/{self._count}" if self._count else self._place.name
            node.metadata_props.update(self._place.metadata_props)
        self._count += 1
        self._graph.insert_before(self._place, node)
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)
        return node
