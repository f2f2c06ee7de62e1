"""Weights in blocks by DequantizeLinear, in place of onnxruntime's own MatMulNBits and GatherBlockQuantized."""

import dataclasses

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from ..methods.edit import initializer, replace
from .constants import Array, root_of, value_of

_FLOAT = ir.DataType.FLOAT

_OPSET = 21
"""The first in which DequantizeLinear has blocks, and types of 4 bits."""


class LowerBlocks(InPlacePass):
    """Turn MatMulNBits into DequantizeLinear and MatMul, GatherBlockQuantized into Gather, Cast and Mul.

    onnxruntime fuses the first back to MatMulNBits. Where a table is also multiplied by, both read one copy of it, laid
    out for the product.

    What has no such form stays: below opset 21, and tables of 4 bits, of which Gather reads no rows.

    Requires: the subgraph of one op, as `subgraph` makes it.
    Ensures: the same weights; inputs are multiplied as they are, where MatMulNBits would round them too.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every such node."""
        graph, modified = model.graph, False
        if graph.opset_imports[""] < _OPSET:
            return PassResult(model, modified=False)
        multiplied = {root_of(node.inputs[1]).name for node in graph if node.op_type == "MatMulNBits"}  # type: ignore[arg-type]
        for node in list(graph):
            if node.op_type == "MatMulNBits":
                _multiply(graph, node)
            elif node.op_type == "GatherBlockQuantized" and node.attributes["bits"].as_int() == 8:
                _look_up(graph, node, tied=root_of(node.inputs[0]).name in multiplied)  # type: ignore[arg-type]
            else:
                continue
            modified = True
        return PassResult(model, modified=modified)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Initializers of a matrix in blocks: integers, the blocks' scales and zero points, as they are laid out."""

    values: ir.Value
    scale: ir.Value
    zero: ir.Value | None

    def dequantize(self, block: int, axis: int) -> list[ir.Node]:
        casts = [] if self.scale.dtype == _FLOAT else [ir.node("Cast", [self.scale], {"to": _FLOAT})]
        scale = casts[0].outputs[0] if casts else self.scale
        inputs = [self.values, scale, *([self.zero] if self.zero is not None else [])]
        return [*casts, ir.node("DequantizeLinear", inputs, {"axis": axis, "block_size": block})]


def _multiply(graph: ir.Graph, node: ir.Node) -> None:
    # Before: MatMulNBits(x, W, scales, zeros?, bias?)
    # After:  MatMul(x, DequantizeLinear(W (K, N), scales (b, N), zeros?)) → Add(bias)
    x, packed, scale, *others = node.inputs
    zero, bias = others[0] if others else None, others[2] if len(others) > 2 else None
    assert packed is not None
    assert scale is not None
    bits, columns = node.attributes["bits"].as_int(), node.attributes["K"].as_int()
    blocks = _stored(graph, packed, scale, zero, bits, columns, turned=True)
    nodes = blocks.dequantize(node.attributes["block_size"].as_int(), 0)
    nodes.append(ir.node("MatMul", [x, nodes[-1].outputs[0]]))
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    nodes[-1].name = node.name
    replace(graph, node, nodes)


def _look_up(graph: ir.Graph, node: ir.Node, *, tied: bool) -> None:
    # Before: GatherBlockQuantized(W, ids, scales, zeros?)
    # After:  Cast(Gather(W, ids)) · (Gather(scales, ids) spread over the blocks' columns), less zeros spread alike.
    # Not by DequantizeLinear, whose blocks OpenVINO 2026.4 takes of constants alone.
    packed, ids, scale, *others = node.inputs
    assert packed is not None
    assert scale is not None
    block, columns = node.attributes["block_size"].as_int(), _width(node, packed)
    blocks = _stored(graph, packed, scale, others[0] if others else None, 8, columns, turned=tied)
    parts = [part for part in (blocks.values, blocks.scale, blocks.zero) if part is not None]
    ones_bK = np.repeat(np.eye(-(-columns // block), dtype=np.uint8), block, axis=1)[:, :columns]
    spread = ir.node("Cast", [initializer(graph, f"tfm.spread_{columns}_{block}", ones_bK)], {"to": _FLOAT})
    nodes = [spread]
    # Of (K, V) columns are looked up, of M ids in a row, and turned to rows.
    if tied:
        nodes.append(ir.node("Reshape", [ids, _integers(graph, [-1])]))
        ids_M = nodes[-1].outputs[0]
    found = []
    for part in parts:
        chosen = _chosen(part, ids_M if tied else ids, turned=tied)
        if part is not blocks.values:
            chosen.append(ir.node("MatMul", [chosen[-1].outputs[0], spread.outputs[0]]))
        nodes += chosen
        found.append(chosen[-1].outputs[0])
    values, scales, *zeros = found
    # (integers - zeros) · scales, in this order, as the kernel computes it
    for zero in zeros:
        nodes.append(ir.node("Sub", [values, zero]))
        values = nodes[-1].outputs[0]
    nodes.append(ir.node("Mul", [values, scales]))
    if tied:
        nodes += _as_ids_are(graph, nodes[-1].outputs[0], ids, columns)
    nodes[-1].name = node.name
    replace(graph, node, nodes)


def _as_ids_are(graph: ir.Graph, rows: ir.Value, ids: ir.Value | None, columns: int) -> list[ir.Node]:
    """(M, K) → (…, K), for ids of any shape."""
    sizes = ir.node("Shape", [ids])
    shape = ir.node("Concat", [sizes.outputs[0], _integers(graph, [columns])], {"axis": 0})
    return [sizes, shape, ir.node("Reshape", [rows, shape.outputs[0]])]


def _chosen(part: ir.Value, ids: ir.Value | None, *, turned: bool) -> list[ir.Node]:
    """Nodes that look rows up and give them in float32; turned: those of a matrix whose columns they are."""
    nodes = [ir.node("Gather", [part, ids], {"axis": int(turned)})]
    if turned:
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [1, 0]}))
    if part.dtype != _FLOAT:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": _FLOAT}))
    return nodes


def _width(node: ir.Node, packed: ir.Value) -> int:
    """How many columns a table has: what its last blocks are filled up with is cut off behind."""
    cut = next((one for one in node.outputs[0].consumers() if one.op_type == "Slice"), None)
    if cut is not None and cut.inputs[2] is not None:
        return int(value_of(cut.inputs[2])[0])
    return int(value_of(root_of(packed)).shape[-1])


def _stored(
    graph: ir.Graph, packed: ir.Value, scale: ir.Value, zero: ir.Value | None, bits: int, columns: int, *, turned: bool
) -> _Blocks:
    """Store a packed matrix (N, K · bits / 8) and what belongs to it in ONNX's types; turned: as (K, N)."""
    name = f"{root_of(packed).name}_blocks{'_turned' if turned else ''}"
    count = len(value_of(root_of(packed)))
    whole = _unpacked(value_of(packed).reshape(count, -1), bits)[:, :columns]
    scales = value_of(scale).reshape(count, -1)
    # Without zero points the middle of the range is 0: signed integers say that by themselves.
    middle = 1 << bits - 1
    if zero is None:
        parts = {"values": _typed(whole.astype(np.int16) - middle, bits, signed=True), "scale": _short(scales)}
    else:
        zeros = _unpacked(value_of(zero).reshape(count, -1), bits)[:, : scales.shape[1]]
        parts = {"values": _typed(whole, bits, signed=False), "scale": _short(scales)}
        parts["zero"] = _typed(zeros, bits, signed=False)
    held = {
        key: initializer(graph, f"{name}_{key}", np.ascontiguousarray(part.T) if turned else part)
        for key, part in parts.items()
    }
    return _Blocks(values=held["values"], scale=held["scale"], zero=held.get("zero"))


def _unpacked(packed: Array, bits: int) -> Array:
    """Whole numbers of rows of bytes, the earlier in the lower bits."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(packed), -1)


def _typed(whole: Array, bits: int, *, signed: bool) -> Array:
    dtypes = {(8, True): ir.DataType.INT8, (8, False): ir.DataType.UINT8}
    dtypes |= {(4, True): ir.DataType.INT4, (4, False): ir.DataType.UINT4}
    return whole.astype(dtypes[bits, signed].numpy())


def _short(scales: Array) -> Array:
    """In float16 where that holds them exactly, as they were stored."""
    short = scales.astype(np.float16)
    return short if np.array_equal(short.astype(np.float32), scales) else scales.astype(np.float32)


def _integers(graph: ir.Graph, values: list[int]) -> ir.Value:
    return initializer(graph, f"tfm.int64_{'_'.join(map(str, values))}", np.array(values, np.int64))
