"""Write rotary positions in products and sums, for engines that have no kernel of RotaryEmbedding."""

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from tfm.errors import ExportError

from .writer import Writer


class LowerRotaryEmbedding(InPlacePass):
    """Turn ONNX-23 RotaryEmbedding into Split, Mul, Sub, Add and Concat.

    Ensures: the same function, of operators of opset 18; cosines and sines of one row serve every row.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every such node."""
        found = [node for node in model.graph if node.op_type == "RotaryEmbedding" and node.domain == ""]
        for node in found:
            _rewrite(model.graph, node)
        return PassResult(model, modified=bool(found))


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    write = Writer(graph, node)
    x, cos, sin, places = [*node.inputs, None][:4]
    assert x is not None
    assert cos is not None
    half, size, merged = _sizes(node, x, cos)
    # (B, S, N·H) → (B, S, N, H).
    if merged:
        x = write("Reshape", [x, write.integers([0, 0, node.attributes["num_heads"].as_int(), -1])])
    # (B or 1, S, I) → (B or 1, S, 1, I), or (B or 1, 1, S, I) where heads come before tokens.
    axis = write.integers([2 if merged else 1])
    tables = _table(write, cos, places, axis), _table(write, sin, places, axis)
    # What lies behind the pairs of a head is passed on as it is.
    turned, *rest = write.split(x, [2 * half, size - 2 * half]) if size > 2 * half else (x,)
    turn = _turn_pairs if node.attributes.get_int("interleaved", 0) else _turn_halves
    result = turn(write, turned, tables, half)
    if rest:
        result = write("Concat", [result, *rest], {"axis": -1})
    if merged:
        result = write("Reshape", [result, write.integers([0, 0, -1])])
    write.finish(result)
    graph.remove(node, safe=True)


def _table(write: Writer, table: ir.Value | None, places: ir.Value | None, axis: ir.Value) -> ir.Value:
    """Cosines or sines of every token, which all its heads read."""
    return write("Unsqueeze", [table if places is None else write("Gather", [table, places]), axis])


def _turn_halves(write: Writer, x: ir.Value, tables: tuple[ir.Value, ir.Value], half: int) -> ir.Value:
    """Turn pairs of which the first numbers come before all second ones."""
    first, second = write.split(x, [half, half])
    return write("Concat", _turned(write, first, second, tables), {"axis": -1})


def _turn_pairs(write: Writer, x: ir.Value, tables: tuple[ir.Value, ir.Value], half: int) -> ir.Value:
    """Turn pairs that lie side by side: (…, I, 2)."""
    last = write.integers([-1])
    parts = write.split(write("Reshape", [x, write.integers([0, 0, 0, half, 2])]), [1, 1])
    first, second = (write("Squeeze", [part, last]) for part in parts)
    pairs = [write("Unsqueeze", [part, last]) for part in _turned(write, first, second, tables)]
    return write("Reshape", [write("Concat", pairs, {"axis": -1}), write.integers([0, 0, 0, 2 * half])])


def _turned(write: Writer, first: ir.Value, second: ir.Value, tables: tuple[ir.Value, ir.Value]) -> list[ir.Value]:
    cos, sin = tables
    return [
        write("Sub", [write("Mul", [first, cos]), write("Mul", [second, sin])]),
        write("Add", [write("Mul", [first, sin]), write("Mul", [second, cos])]),
    ]


def _sizes(node: ir.Node, x: ir.Value, cos: ir.Value) -> tuple[int, int, bool]:
    """Pairs that are turned, a head's size, and whether heads lie side by side, (B, S, N·H)."""
    half = None if cos.shape is None else cos.shape[-1]
    width = None if x.shape is None else x.shape[-1]
    if not isinstance(half, int) or not isinstance(width, int) or x.shape is None:
        raise ExportError(
            f"{node.name}: its sizes are not known, so that rotary positions cannot be written out for an older "
            "onnxruntime; 1.23 and later have RotaryEmbedding itself"
        )
    merged = x.shape.rank() == 3
    return half, width // node.attributes["num_heads"].as_int() if merged else width, merged
