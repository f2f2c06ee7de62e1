"""Declare a graph to be of an older opset, where its operators are the same there."""

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from tfm.errors import ExportError

_CHANGED = {"GroupNormalization": 21, "GridSample": 20, "DFT": 20, "Resize": 19}
"""Operators that compute something else since an opset."""


class SetOpset(InPlacePass):
    """Declare a model to be of an older opset.

    Most operators came in a new version for new types alone. Each node is compared with the older version of its
    operator: it must have its attributes, inputs and types.

    Args:
        opset: The opset.
        ir_version: That of the file.

    Ensures: the same function; a model that has no form there is refused.
    """

    def __init__(self, opset: int, ir_version: int) -> None:
        super().__init__()
        self.opset, self.ir_version = opset, ir_version

    def call(self, model: ir.Model) -> PassResult:
        """Check every node, and write the number."""
        now = model.opset_imports[""]
        for node in model.graph.all_nodes():
            if node.domain == "" and self.opset < now:
                self._check(node, now)
        for graph in {model.graph, *(node.graph for node in model.graph.all_nodes())}:
            if isinstance(graph, ir.Graph):
                graph.opset_imports[""] = self.opset
        model.ir_version = self.ir_version
        return PassResult(model, modified=True)

    def _check(self, node: ir.Node, now: int) -> None:
        """Refuse a node that the older opset has not; drop attributes that say what it does anyway."""
        if not onnx.defs.has(node.op_type, now, ""):
            # Onnxruntime's own, which it keeps in ONNX's domain.
            return
        newer = onnx.defs.get_schema(node.op_type, now, "")
        if self.opset < _CHANGED.get(node.op_type, 0):
            self._refuse(node, _CHANGED[node.op_type])
        try:
            older = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            self._refuse(node, newer.since_version)
        # The same definition in both: nothing to compare.
        if older.since_version == newer.since_version:
            return
        # What an attribute came with must be what was done before there was one.
        for name, attribute in list(node.attributes.items()):
            if name not in older.attributes:
                if attribute.value != onnx.helper.get_attribute_value(newer.attributes[name].default_value):
                    self._refuse(node, newer.since_version)
                del node.attributes[name]
        if len(node.inputs) > older.max_input or not _takes(older, node):
            self._refuse(node, newer.since_version)

    def _refuse(self, node: ir.Node, since: int) -> None:
        raise ExportError(
            f"{node.op_type} ({node.name}) has no form in opset {self.opset}: ask for --opset {since} or later, or for "
            "a --runtime that has it"
        )


def _takes(schema: "onnx.defs.OpSchema", node: ir.Node) -> bool:
    """Whether an operator takes the types of a node's inputs, as far as they are known."""
    for place, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        name = _NAMES.get(value.dtype, value.dtype.name.lower())
        if not any(f"({name})" in kind for kind in formal.types):
            return False
    return True


_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}
