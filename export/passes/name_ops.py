"""Mark the nodes of every attention, activation and layer with the module they come from; drop torch's metadata."""

import ast
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from tfm.ops import OpId

from ..torch_ops import kinds_of_aten, kinds_of_modules

OP_KEY = "tfm.op"
"""Metadata key of a node: the `OpId` it belongs to, as text."""

NOTE_KEY = "tfm.note"
"""Metadata key of a node: why a pass left it in a form that is not the best."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"


class NameOps(InPlacePass):
    """Give the nodes of each attention, softmax, activation and layer an `OP_KEY`.

    Requires: the metadata that torch's exporter writes on nodes, of a `tfm.export.Graph`; a module's later calls
        have "@1", "@2", … behind their scope.
    Ensures: no other metadata is left (the exporter's holds paths of the machine it ran on).

    Attributes:
        names: For each name a module can be reached by, the one that `named_modules` gives it.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.names = {} if names is None else names

    def call(self, model: ir.Model) -> PassResult:
        """Name the ops of `model` in the order of its nodes."""
        calls: Counter[tuple[str, str]] = Counter()
        # Torch call → op.
        named: dict[str, OpId] = {}
        kinds, composites = kinds_of_aten(), kinds_of_modules()
        for node in model.graph:
            # Both are written as the text of a Python list, from the outermost module inwards; the
            # last entries are torch's own call and its ATen operator.
            scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
            classes = ast.literal_eval(node.metadata_props.get(_CLASSES, "[]"))
            # Of every node, named or not: the rest holds the exporting machine's paths.
            node.metadata_props.clear()
            # A node that the exporter or a pass made itself comes from no call.
            if len(scopes) < 2 or len(scopes) != len(classes):
                continue
            call, path, kind = scopes[-1], scopes[-2], kinds.get(classes[-1])
            # From the inside outwards, so that the outermost composite wins, which is the one that
            # the recorder of eager's calls shows too.
            for scope, name in reversed(list(zip(scopes[:-1], classes[:-1], strict=True))):
                # All its calls together are one op.
                if name in composites:
                    call, path, kind = scope, scope, composites[name]
            if kind is None:
                continue
            # A call that became several nodes is numbered once. The order of the nodes is that of
            # eager's calls, so that the numbers are the recorder's.
            if call not in named:
                # "model.encoder.layers.0@1" → "encoder.layers.0". Later calls of a module have its
                # own path, and are told apart by their number; "model" is where a Graph keeps its
                # module.
                path = path.partition("@")[0]
                path = "" if path == "model" else path.removeprefix("model.")
                # A module that is shared has several paths; eager's hooks know it by the first.
                path = self.names.get(path, path)
                named[call] = OpId(kind=kind, path=path, call=calls[kind, path])
                calls[kind, path] += 1
            node.metadata_props[OP_KEY] = str(named[call])
        return PassResult(model, modified=True)
