"""float32 ONNX → float16 ONNX, half the size, for providers that compute in float16 (CUDA).

Weights and the stream of activations are float16. What float16 cannot hold stays in float32, in connected parts, so
that nothing is rounded on the way: positions and angles (float16 counts to 2048), sums, powers and what is divided by
them, and every op with a constant that float16 has not, such as an ε. Norms and attention are float16 outside and
accumulate in float32 within (`stash_type`, and the kernels).

Inputs and outputs stay float32, so that every precision of a bundle is called alike. A cache pays for it: all of it is
cast at each step, 6 bytes of traffic per number beside the 2 that attention reads.

`onnxruntime.transformers.float16` does not do this: it blocks ops one by one and rounds what goes from one to the next
to float16, positions included; it clips weights that overflow without a word; importing it changes `sys.path`.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError
from tfm.runtime import ErrorStats

from .edit import initializer, refuse_quantized

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT

_SINGLE_OPS = {
    *("Range", "CumSum", "Cos", "Sin", "Tan"),
    *("Exp", "Log", "Pow", "Sqrt", "Reciprocal"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
    *("ReduceSumSquare", "GlobalAveragePool", "GlobalLpPool", "LpNormalization", "MeanVarianceNormalization"),
    *("DFT", "STFT", "NonMaxSuppression", "Resize"),
    "TensorScatter",
}
"""Ops whose arguments or results leave float16's range or need its missing digits, that have no float16 kernel, or that
write into a cache in place, which is float32."""

_HALF_OPS = {
    *("Attention", "Conv", "LayerNormalization", "RMSNormalization"),
    *("GroupQueryAttention", "MultiHeadAttention"),
}
"""Ops worth a cast of whatever goes into them."""

_SCALES = {"Div", "Pow", "Reciprocal", "Sqrt"}
"""Ops whose results are what a stream is multiplied by to normalize it: too large or too small for float16."""

_BOUNDS = {"Clip", "Max", "Min"}

_LARGE = 256
"""Numbers of a constant from which on it is taken for a weight, and what it is applied to for activations."""

_LARGEST = float(np.finfo(np.float16).max)

_LEAST_MASK, _MASK = -1e9, -3e4
"""A number below the first masks a score; the second does so in float16, and leaves room to add a score and another
mask. The lowest, -65504, does not: with a score of -16 it is -∞, and a row of nothing else NaN. Neither is large enough
to swallow scores in float32: a row that is masked whole by numbers, which nobody reads, need not be the plain mean."""

_LOSS = 1e-6
"""NMSE from which on float16 does not hold a constant. Rounding to 11 bits makes it 2.4e-7 at worst; what is more comes
from numbers below 6e-5, which have fewer."""


def to_fp16(model: ir.Model) -> None:
    """Turn a float32 ONNX model into float16 in place, its inputs and outputs excepted.

    Args:
        model: Its values have types, as `to_onnx` gives them. A weight that several nodes read is stored once.

    Raises:
        QuantizeError: A weight is NaN or beyond ±65504; the graph is quantized or float16 already; it has branches,
            loops or functions; or the type of a value is not known.
    """
    _refuse(model)
    # What becomes of a constant is told for initializers alone.
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _Conversion(model.graph).convert()
    common.RemoveUnusedNodesPass()(model)


def emulate_fp16(model: ir.Model) -> None:
    """Turn what `to_fp16` made into a float32 model in place that rounds as float16 does, node by node.

    onnxruntime's CPU provider computes most float16 nodes in float32, and drops the rounding between two such nodes:
    sums beyond 65504 come out finite there, and infinite on CUDA. Here each result is rounded, as by kernels that add
    up in float32 and store float16.

    Args:
        model: It computes in float16, and takes and gives float32.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == _HALF and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = _SINGLE
    _emulate(graph)


def _emulate(graph: ir.Graph) -> None:
    for node in list(graph):
        # The branches of an If.
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _emulate(attribute.as_graph())
        for output in node.outputs:
            if output.dtype != _HALF:
                continue
            # Before: node(half)
            # After:  node(float) → Cast(half) → Cast(float)
            # The users are noted first: soon the casts will be among them.
            users, casts = list(output.uses()), []
            # A Cast to half is itself the rounding.
            if node.op_type != "Cast":
                output.dtype = _SINGLE
                casts = [_cast(output, _HALF)]
            casts.append(_cast(casts[0].outputs[0] if casts else output, _SINGLE))
            for number, cast in enumerate(casts):
                cast.metadata_props.update(node.metadata_props)
                # Names that are made up on writing are those of one graph; of a branch they must not be around it.
                cast.outputs[0].name = f"{output.name}_rounded{number}"
            graph.insert_after(node, casts)
            _redirect(users, casts[-1].outputs[0])


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype})
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(dtype)
    return cast


def _redirect(users: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for user, index in users:
        user.replace_input_with(index, value)


def _refuse(model: ir.Model) -> None:
    refuse_quantized(model.graph)
    if model.functions:
        raise QuantizeError(f"the graph {model.graph.name!r} has functions; inline them first (onnx.inliner)")
    for node in model.graph:
        _refuse_node(node)


def _refuse_node(node: ir.Node) -> None:
    name, kinds = node.name or node.outputs[0].name, {attribute.type for attribute in node.attributes.values()}
    if kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        raise QuantizeError(f"{name!r}, a {node.op_type}, has a graph within; only plain graphs become float16")
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and value.dtype in (None, _HALF):
            what = "is float16 already" if value.dtype == _HALF else "has no type; infer types first"
            raise QuantizeError(f"{value.name!r} at {name!r} {what}; a float32 graph was expected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Constant:
    """What float16 makes of a constant.

    Attributes:
        half: Its numbers; those that mask are lifted into range.
        masks: Whether there are such.
        overflow: A number of a weight that is beyond the range.
        fits: Whether float16 holds it, or would but for that number.
    """

    half: npt.NDArray[np.float16]
    masks: bool
    overflow: float | None
    fits: bool


class _Conversion:
    """The constants, and which type every node computes in."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.constants = {
            value: _read(value)
            for value in graph.initializers.values()
            if value.dtype == _SINGLE and value.const_value is not None and list(value.consumers())
        }
        self.types: dict[ir.Node, ir.DataType | None] = {}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self) -> None:
        nodes = list(self.graph)
        for node in nodes:
            self.types[node] = self._type_of(node)
        # What depends on nothing but small constants is what it is wanted for.
        for node in reversed(nodes):
            if self.types[node] is None:
                users = {self.types[user] for output in node.outputs for user in output.consumers()}
                self.types[node] = _SINGLE if _SINGLE in users else _HALF
        for node in nodes:
            self._convert(node)
        # Outputs stay float32, under their old names.
        for index, output in enumerate(self.graph.outputs):
            if output.dtype == _HALF:
                name, output.name = output.name, f"{output.name}_half"
                self.graph.outputs[index] = self._typed(output, _SINGLE)
                self.graph.outputs[index].name = name

    def _type_of(self, node: ir.Node) -> ir.DataType | None:
        """The type that a node computes in; None where either will do."""
        floats = [value for value in node.inputs if value is not None and value.dtype == _SINGLE]
        constants = [value for value in floats if value in self.constants]
        # The order decides: first what float16 cannot hold or has no kernel for.
        if not floats or node.op_type in _SINGLE_OPS or not all(self._fits(value, node) for value in constants):
            return _SINGLE
        # Squares of numbers beyond 256 are beyond float16.
        # A square.
        if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
            return _SINGLE
        # Then what float16 is there for: whatever goes into a product by weights is cast for it.
        if node.op_type in _HALF_OPS or any(self.constants[value].half.size >= _LARGE for value in constants):
            return _HALF
        # All others follow their inputs; those of the graph count as a stream of activations.
        producers = [value.producer() for value in floats if value not in self.constants]
        types = {_HALF if producer is None else self.types[producer] for producer in producers}
        # Here a stream and a scale in float32 meet. The stream is normalized before it is rounded
        # again: by itself the scale need not fit into float16.
        if _HALF in types:
            return _SINGLE if self._normalizes(node) else _HALF
        return _SINGLE if _SINGLE in types else None

    def _fits(self, value: ir.Value, node: ir.Node) -> bool:
        constant = self.constants[value]
        return constant.fits and not (constant.masks and node.op_type in _BOUNDS)

    def _normalizes(self, node: ir.Node) -> bool:
        """Whether a node divides by something that is computed in float32, or multiplies by its inverse."""
        if node.op_type not in ("Div", "Mul"):
            return False
        # A Div has its scale behind; of a Mul either factor may be it.
        divides = node.op_type == "Div"
        factors = [value.producer() for value in node.inputs[divides:] if value is not None]
        scales = [factor for factor in factors if factor is not None and (divides or factor.op_type in _SCALES)]
        return any(self.types[scale] == _SINGLE for scale in scales)

    def _convert(self, node: ir.Node) -> None:
        dtype = self.types[node]
        assert dtype is not None
        for index, value in enumerate(node.inputs):
            if value in self.constants:
                node.replace_input_with(index, self._constant(value, node, dtype))
            elif value is not None and value.dtype in (_HALF, _SINGLE) and value.dtype != dtype:
                node.replace_input_with(index, self._typed(value, dtype))
        if dtype == _HALF:
            # Those are float32.
            statistics = node.outputs[1:] if node.op_type == "LayerNormalization" else ()
            for output in node.outputs:
                if output.dtype == _SINGLE and output not in statistics:
                    output.dtype = _HALF
            # Its attribute says the type again.
            if node.op_type == "Cast" and node.outputs[0].dtype == _HALF:
                node.attributes["to"] = ir.AttrInt64("to", _HALF)
        # A mask that the graph fills in itself: the same number as in masks among the constants.
        if node.op_type == "ConstantOfShape" and node.outputs[0].dtype == _SINGLE and "value" in node.attributes:
            fill = node.attributes["value"].as_tensor().numpy()
            if fill.item() <= _LEAST_MASK and np.isfinite(fill.item()):
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.full(1, _MASK, np.float32)))

    def _constant(self, value: ir.Value, node: ir.Node, dtype: ir.DataType) -> ir.Value:
        constant = self.constants[value]
        if dtype == _HALF:
            if constant.overflow is not None:
                raise QuantizeError(
                    f"the weight {value.name!r} holds {constant.overflow:g}, and float16 ends at ±{_LARGEST:g}; "
                    "leave out fp16"
                )
            return initializer(self.graph, f"{value.name}_half", constant.half)
        # The same mask wherever it is compared with.
        if constant.masks and node.op_type not in _BOUNDS:
            return initializer(self.graph, f"{value.name}_mask", constant.half.astype(np.float32))
        return value

    def _typed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type, by a Cast behind what computes it: one for all who want it."""
        if (value, dtype) not in self.casts:
            cast = _cast(value, dtype)
            result = self.casts[value, dtype] = cast.outputs[0]
            result.name = f"{value.name}_{'half' if dtype == _HALF else 'single'}"
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
        return self.casts[value, dtype]


def _read(value: ir.Value) -> _Constant:
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    if np.isnan(array.min(initial=0)):
        raise QuantizeError(f"the weight {value.name!r} holds NaN")
    # Finite numbers beyond float16: a mask where all are far below zero, else an overflow. -∞ needs
    # nothing, float16 has it.
    beyond = array[np.isfinite(array) & (np.abs(array) > _LARGEST)]
    masks = bool(beyond.size and (beyond <= _LEAST_MASK).all())
    if masks:
        array = np.where(np.isfinite(array) & (array < -_LARGEST), np.float32(_MASK), array)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    loss = ErrorStats()
    loss.add(half, array)
    # A single number beyond it (a limit, say) just keeps its op in float32; in a weight it is an
    # error, once the weight is to be float16.
    overflows = beyond.size > 0 and not masks and array.size > 1
    del array
    if isinstance(tensor, ir.ExternalTensor):
        # What is mapped of a file beside the model.
        tensor.release()
    return _Constant(
        half=half, masks=masks, overflow=float(beyond[0]) if overflows else None, fits=overflows or loss.nmse <= _LOSS
    )
