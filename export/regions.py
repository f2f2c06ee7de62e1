"""The nodes of one attention or activation in an ONNX graph, cut out so that they run alone."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from tfm.errors import VerificationError

from .ops import ATTENTION
from .passes import OP_KEY
from .taps import Tap

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """All nodes that one op became.

    Attributes:
        op: The op's name, `str(OpId)`.
        nodes: In the order of the graph.
        inputs: Per argument of the op, the value that carries it in; None where the nodes take none.
        output: The value that carries the result out.
    """

    op: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value | None, ...]
    output: ir.Value

    @property
    def form(self) -> str:
        """What the op became, such as "Attention" or "Relu·Mul"."""
        return "·".join(node.op_type for node in self.nodes if node.op_type not in _SHAPING)

    def feeds(self, tap: Tap) -> dict[str, Array]:
        """Lay out what eager fed to the op as this region's inputs want it.

        Raises:
            VerificationError: The region takes an input that eager did not give.
        """
        feeds = {}
        for index, (value, tensor) in enumerate(zip(self.inputs, tap.inputs, strict=False)):
            if value is None:
                continue
            if tensor is None and index < 3:
                raise VerificationError(
                    f"the graph feeds {value.name!r} to the op, to which eager gave no such argument"
                )
            array = _mask(tap, value) if tensor is None or index == 3 else tensor.numpy()
            if tap.op.kind == ATTENTION and index < 3 and array.ndim == 4 and _rank(value) == 3:
                array = _merge_heads(array)
            feeds[str(value.name)] = np.ascontiguousarray(array)
        return feeds

    def expected(self, tap: Tap) -> Array:
        """Lay out what eager got from the op as this region's output gives it."""
        array = tap.output.numpy()
        return (
            _merge_heads(array) if tap.op.kind == ATTENTION and array.ndim == 4 and _rank(self.output) == 3 else array
        )

    def session(self, model: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
        """Make a session that runs these nodes alone."""
        return ort.InferenceSession(self._cut_out(model), options, providers=["CPUExecutionProvider"])

    def _cut_out(self, model: ir.Model) -> bytes:
        copies: dict[ir.Value, ir.Value] = {}
        inputs = []
        for argument in dict.fromkeys(argument for argument in self.inputs if argument is not None):
            copies[argument] = ir.Value(name=argument.name, type=argument.type)
            inputs.append(copies[argument])
        nodes, initializers = [], []
        for node in self.nodes:
            for value in node.inputs:
                if value is not None and value not in copies:
                    if value.const_value is None:
                        raise VerificationError(
                            f"{self.op} also depends on {value.name!r}, which is none of its arguments"
                        )
                    copies[value] = ir.Value(
                        name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
                    )
                    initializers.append(copies[value])
            arguments = [None if value is None else copies[value] for value in node.inputs]
            results = [ir.Value(name=value.name, type=value.type) for value in node.outputs]
            nodes.append(ir.Node(node.domain, node.op_type, arguments, node.attributes.values(), outputs=results))
            copies.update(zip(node.outputs, results, strict=True))
        graph = ir.Graph(
            inputs,
            [copies[self.output]],
            nodes=nodes,
            initializers=initializers,
            opset_imports=model.opset_imports,
            name=self.op,
        )
        return bytes(ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString())


_SHAPING = {"Shape", "Concat", "Expand", "Constant", "Cast", "Unsqueeze"}
"""Nodes that prepare an attention's mask, of no interest to who reads a table."""


def find_regions(model: ir.Model) -> dict[str, Region]:
    """Find the region of every op that `NameOps` named.

    Raises:
        VerificationError: The nodes of an op have no or several results, or no single argument.
    """
    groups: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if OP_KEY in node.metadata_props:
            groups.setdefault(node.metadata_props[OP_KEY], []).append(node)
    return {op: _region(op, tuple(nodes)) for op, nodes in groups.items()}


def _region(op: str, nodes: tuple[ir.Node, ...]) -> Region:
    inside = set(nodes)
    if op.startswith(ATTENTION):
        (core,) = [node for node in nodes if node.op_type == "Attention"] or [nodes[-1]]
        arguments = [*core.inputs, None, None, None, None][:4]
        return Region(
            op=op, nodes=nodes, inputs=tuple(_enter(value, inside) for value in arguments), output=_leave(core, inside)
        )
    entering = {
        v for n in nodes for v in n.inputs if v is not None and v.producer() not in inside and v.const_value is None
    }
    leaving = [
        v for n in nodes for v in n.outputs if v.is_graph_output() or any(user not in inside for user in v.consumers())
    ]
    if len(entering) != 1 or len(leaving) != 1:
        raise VerificationError(
            f"{op} became nodes with {len(entering)} arguments and {len(leaving)} results, not one of each"
        )
    return Region(op=op, nodes=nodes, inputs=(entering.pop(),), output=leaving[0])


def _enter(value: ir.Value | None, inside: set[ir.Node]) -> ir.Value | None:
    """Walk from an argument of the core node up to the value that enters the region."""
    while value is not None and (producer := value.producer()) is not None and producer in inside:
        value = producer.inputs[0]
    return value


def _leave(core: ir.Node, inside: set[ir.Node]) -> ir.Value:
    """The attention's result, behind the Squeeze that takes off a batch of one."""
    users = [node for node in core.outputs[0].consumers() if node in inside and node.op_type == "Squeeze"]
    return users[0].outputs[0] if users else core.outputs[0]


def _mask(tap: Tap, value: ir.Value) -> Array:
    """The mask of an attention in the graph's terms.

    Eager may leave out a mask that masks nothing, or write it as booleans where the graph, traced for every input, has
    numbers to add, or the other way round.
    """
    query, key, _, mask = tap.inputs
    assert query is not None
    assert key is not None
    array = np.ones((query.shape[-2], key.shape[-2]), np.bool_) if mask is None else mask.numpy()
    if value.dtype == ir.DataType.BOOL and array.dtype != np.bool_:
        if not np.isin(array, (0.0, -np.inf, np.finfo(array.dtype).min)).all():
            raise VerificationError("eager adds numbers to the scores, where the graph has a mask of booleans")
        return array == 0.0
    if value.dtype == ir.DataType.FLOAT and array.dtype == np.bool_:
        return np.where(array, np.float32(0.0), np.float32(-np.inf))
    return array


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        raise VerificationError(f"the rank of {value.name!r} is not known")
    return int(value.shape.rank())


def _merge_heads(array_BNSH: Array) -> Array:
    batch, heads, length, size = array_BNSH.shape
    return array_BNSH.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
