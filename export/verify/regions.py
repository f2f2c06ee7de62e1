"""The nodes of one attention, activation or layer in an ONNX graph, and how eager's tensors fit them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import VerificationError
from tfm.ops import ATTENTION, OpId

from ..passes import ARGUMENT_KEY, OP_KEY, RESULT_KEY
from .hooks import RecordedCall

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """All nodes that one op became.

    Attributes:
        op: The op's name, `str(OpId)`.
        nodes: In the order of the graph.
        inputs: Per argument of the op, the value that carries it in; None where the nodes take none.
        output: The value that carries the result out.
        presents: Of an attention over a cache, the values that carry out what it holds then.
    """

    op: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value | None, ...]
    output: ir.Value
    presents: tuple[ir.Value, ...] = ()

    @property
    def form(self) -> str:
        """What the op became, such as "Attention" or "Relu·Mul"."""
        written_out = any(ARGUMENT_KEY in node.metadata_props for node in self.nodes)
        nodes = [node.op_type for node in self.nodes]
        if written_out:
            return "·".join(op_type for op_type in nodes if op_type in _WRITTEN_OUT)
        return "·".join(op_type for op_type in nodes if op_type not in _SHAPING)

    def feeds(self, call: RecordedCall) -> dict[str, Array]:
        """Lay out what eager fed to the op as this region's inputs want it.

        Raises:
            VerificationError: The region takes an input that eager did not give.
        """
        if call.presents:
            return self._feeds_of_cached(call)
        feeds = {}
        # Indices 0 to 2 are query, key and value (of other ops, the argument); 3 is the mask.
        for index, (value, tensor) in enumerate(zip(self.inputs, call.inputs, strict=False)):
            if value is None:
                continue
            if tensor is None and index < 3:
                raise VerificationError(
                    f"the graph feeds {value.name!r} to the op, to which eager gave no such argument"
                )
            array = _mask(call, value) if tensor is None or index == 3 else tensor.numpy()
            if index in (1, 2) and array.ndim == 4:  # of an attention: no other op has as many arguments
                array = _repeat_heads(array, value)
            feeds[str(value.name)] = np.ascontiguousarray(_as_laid_out(call, array, value) if index < 3 else array)
        if self.causal is not None:  # aligned with the first key, as torch aligns it
            lengths = [x.shape[-2] for x in call.inputs[:2] if x is not None]
            feeds[str(self.causal.name)] = np.tri(*lengths, dtype=np.bool_)
        return feeds

    @property
    def causal(self) -> ir.Value | None:
        """What says up to which key each query sees, where an attention was written out."""
        place = ARGUMENTS.index("causal")
        return self.inputs[place] if place < len(self.inputs) else None

    def _feeds_of_cached(self, call: RecordedCall) -> dict[str, Array]:
        query, key, value, mask, past_key, past_value = (None if x is None else x.numpy() for x in call.inputs)
        assert query is not None
        assert past_key is not None
        (rows, new, _), before = query.shape, past_key.shape[2]
        # No mask is one that masks nothing, of a past without room.
        seen = np.ones((1, 1, new, before + new), np.bool_) if mask is None else mask
        total = seen.shape[-1]
        arrays = [query, key, value, np.broadcast_to(seen, (*seen.shape[:2], new, total)), past_key, past_value]
        arrays += [np.full(rows, total - 1, np.int32), np.array(total, np.int32)]
        arrays.append(np.tri(new, total, total - new, dtype=np.bool_))
        feeds = {}
        for name, value_in, array in zip(ARGUMENTS, self.inputs, arrays, strict=False):
            if value_in is not None and array is not None:
                array = _in_terms_of(value_in, array) if name == "mask" else array
                feeds[str(value_in.name)] = np.ascontiguousarray(array) if array.ndim else array
        return feeds

    def release(self) -> None:
        """Give back the memory that weights outside the file were mapped into when they were read."""
        for value in self.constants:
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value.release()

    @property
    def arguments(self) -> list[tuple[str, ir.Value]]:
        """The name of each argument that the nodes take, and the value that carries it in."""
        names = ARGUMENTS if OpId.parse(self.op).kind == ATTENTION else ("argument",)
        return [(name, value) for name, value in zip(names, self.inputs, strict=False) if value is not None]

    def expected(self, call: RecordedCall) -> Array:
        """Lay out what eager got from the op as this region's output gives it."""
        return _as_laid_out(call, call.output.numpy(), self.output)

    @property
    def results(self) -> list[ir.Value]:
        """The value that carries the result out, and those of the cache."""
        return [self.output, *self.presents]

    def constant_arrays(self) -> list[Array]:
        """The same as numpy has them."""
        return [value.const_value.numpy() for value in self.constants if value.const_value is not None]

    @property
    def constants(self) -> list[ir.Value]:
        """The weights and other constants that the nodes read."""
        return list(
            dict.fromkeys(
                value
                for node in self.nodes
                for value in node.inputs
                if value is not None and value.const_value is not None
            )
        )


ARGUMENTS = ("query", "key", "value", "mask", "past key", "past value", "lengths", "total length", "causal")
"""Of an attention, in the order of `Region.inputs`."""

# Of a node's inputs, where those arguments stand.
_PLACES = {"Attention": (0, 1, 2, 3, 4, 5), "GroupQueryAttention": (0, 1, 2, 10, 3, 4, 5, 6)}


def _repeat_heads(array: Array, value: ir.Value) -> Array:
    """Give each key or value head as often as the graph has it.

    Where no position is masked, transformers hands grouped heads to torch as they are (`enable_gqa`), and repeats them
    where one is. The graph, traced with a mask, has them repeated always; the attention is the same.
    """
    sizes: list[object] = [] if value.shape is None else [dim if isinstance(dim, int) else None for dim in value.shape]
    heads: object = array.shape[1]
    if len(sizes) == 4:
        heads = sizes[1]
    elif len(sizes) == 3 and isinstance(sizes[2], int):
        heads = sizes[2] // array.shape[3]
    several = isinstance(heads, int) and heads > array.shape[1] and heads % array.shape[1] == 0
    return np.repeat(array, heads // array.shape[1], axis=1) if several else array


_QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
"""Types of quantized weights."""

_WRITTEN_OUT = {"MatMul", "Softmax"}
"""Nodes that say what an attention became that several stand for."""

_SHAPING = {"Shape", "Concat", "Expand", "Constant", "Cast", "Unsqueeze"}
"""Nodes that prepare an attention's mask, of no interest to who reads a table."""


def find_regions(model: ir.Model) -> dict[str, Region]:
    """Find the region of every op that `NameOps` named.

    A layer whose nodes take something beside one argument (a weight that is computed, say) has none: it shows only in
    the ops after it.

    Raises:
        VerificationError: The nodes of an attention, softmax or activation have no or several results, or no single
            argument.
    """
    groups: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if OP_KEY in node.metadata_props:
            groups.setdefault(node.metadata_props[OP_KEY], []).append(node)
    regions = {op: _region(op, tuple(nodes)) for op, nodes in groups.items()}
    return {op: region for op, region in regions.items() if region is not None}


def _region(op: str, nodes: tuple[ir.Node, ...]) -> Region | None:
    name, inside = OpId.parse(op), set(nodes)
    if name.kind == ATTENTION:
        return _attention_region(op, nodes)
    # All else: nodes of one op must have one value in and one out, weights aside, or what is fed
    # and compared would not be the op's.
    entering = list({value for node in nodes for value in node.inputs if _enters(value, inside)})
    leaving = [value for node in nodes for value in node.outputs if _leaves(value, inside)]
    if len(entering) != 1 or len(leaving) != 1:
        if name.is_layer:
            return None
        raise VerificationError(
            f"{op} became nodes with {len(entering)} arguments and {len(leaving)} results, not one of each"
        )
    return Region(op=op, nodes=nodes, inputs=(entering[0],), output=leaving[0])


def _enters(value: ir.Value | None, inside: set[ir.Node]) -> bool:
    return value is not None and value.producer() not in inside and value.const_value is None


def _leaves(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or not inside.issuperset(value.consumers())


def _attention_region(op: str, nodes: tuple[ir.Node, ...]) -> Region:
    # Around the Attention are the nodes of its mask, and Unsqueeze and Squeeze where there is no
    # batch.
    inside = set(nodes)
    if any(ARGUMENT_KEY in node.metadata_props for node in nodes):
        return _region_written_out(op, nodes)
    (core,) = [node for node in nodes if node.op_type in _PLACES] or [nodes[-1]]
    arguments = dict(enumerate(core.inputs))
    places = _PLACES.get(core.op_type, (0, 1, 2, 3))
    inputs = tuple(_enter(arguments.get(place), inside) for place in places)
    presents = tuple(core.outputs[1:3]) if len(inputs) > 4 and inputs[4] is not None else ()
    return Region(op=op, nodes=nodes, inputs=inputs, output=_leave(core, inside), presents=presents)


def _region_written_out(op: str, nodes: tuple[ir.Node, ...]) -> Region:
    """That of an attention which a pass wrote out; it said where arguments enter and results leave."""
    inside, entering = set(nodes), dict[str, ir.Value | None]()
    for node in nodes:
        for said in filter(None, node.metadata_props.get(ARGUMENT_KEY, "").split(", ")):
            name, place = said.rsplit(":", 1)
            entering[name] = _enter(node.inputs[int(place)], inside)
    leaving = {node.metadata_props[RESULT_KEY]: node for node in nodes if RESULT_KEY in node.metadata_props}
    return Region(
        op=op,
        nodes=nodes,
        inputs=tuple(entering.get(name) for name in ARGUMENTS),
        output=_leave(leaving["output"], inside),
        presents=tuple(leaving[name].outputs[0] for name in ("present key", "present value") if name in leaving),
    )


def _enter(value: ir.Value | None, inside: set[ir.Node]) -> ir.Value | None:
    """Walk from an argument of the core node up to the value that enters the region."""
    while value is not None and (producer := value.producer()) is not None and producer in inside:
        # The first input is the data: the mask of Expand and Unsqueeze. Of Where it is IsInf(mask),
        # which leads on to the same mask.
        value = producer.inputs[0]
    return value


def _leave(core: ir.Node, inside: set[ir.Node]) -> ir.Value:
    """The attention's result, behind the Squeeze that takes off a batch of one."""
    users = [node for node in core.outputs[0].consumers() if node in inside and node.op_type == "Squeeze"]
    return users[0].outputs[0] if users else core.outputs[0]


def _mask(call: RecordedCall, value: ir.Value) -> Array:
    """The mask of an attention in the graph's terms.

    Eager may leave out a mask that masks nothing, or write it as booleans where the graph, traced for every input, has
    numbers to add, or the other way round.
    """
    query, key, _, mask = call.inputs
    assert query is not None
    assert key is not None
    # No mask is one that masks nothing, (S, T).
    return _in_terms_of(value, np.ones((query.shape[-2], key.shape[-2]), np.bool_) if mask is None else mask.numpy())


def _in_terms_of(value: ir.Value, array: Array) -> Array:
    """A mask as the booleans or numbers that the graph has."""
    # Numbers become booleans only where they are nothing but a mask; a bias would be lost.
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


def _as_laid_out(call: RecordedCall, array: Array, value: ir.Value) -> Array:
    """An attention's tensor as the graph has it: FoldHeads let it take (B, S, N·H) where eager has (B, N, S, H)."""
    by_heads = call.op.kind == ATTENTION and array.ndim == 4
    return _merge_heads(array) if by_heads and _rank(value) == 3 else array


def _merge_heads(array_BNSH: Array) -> Array:
    batch, heads, length, size = array_BNSH.shape
    return array_BNSH.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def cuts_of(regions: Mapping[str, Region]) -> dict[str, list[ir.Value]]:
    """Where to look in a graph to see each op: at what enters it, "OP in", and at its result, "OP"."""
    cuts = {}
    for op, region in regions.items():
        cuts[f"{op} in"] = [value for _, value in region.arguments]
        cuts[op] = region.results
    return cuts


def rounded_values(model: ir.Model, *, half: bool = False) -> set[ir.Value]:
    """The values that a quantized weight or, with `half`, a float16 one leads to: they are not what eager computes."""
    rounded: set[ir.Value] = set()
    for node in model.graph:
        # In the order of the graph, so that one pass carries the mark to all that follows; what a branch computes is
        # what its node gives.
        inner = [node, *(one for branch in branches_of(node) for one in branch.all_nodes())]
        read = {value for one in inner for value in one.inputs if value is not None}
        if any(_rounds(one, half) for one in inner) or not rounded.isdisjoint(read):
            rounded.update(node.outputs)
    return rounded


def branches_of(node: ir.Node) -> list[ir.Graph]:
    """List the graphs within a node."""
    return [each.as_graph() for each in node.attributes.values() if each.type == ir.AttributeType.GRAPH]


def _rounds(node: ir.Node, half: bool) -> bool:
    """Whether a node reads a quantized weight or, with `half`, gives float16."""
    weights = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    quantized = any(weight.dtype in _QUANTIZED for weight in weights)
    return quantized or (half and any(value.dtype == ir.DataType.FLOAT16 for value in node.outputs))
