"""Graphs as browsers run them: weights within the file, and no operator that a build for the web lacks.

onnxruntime-web's WebGPU build, the only one that transformers.js opens, has no GatherBlockQuantized. What that computes
is written out in standard operators, to the last bit: the rows of whole numbers and of scales are looked up, and
multiplied.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from .storage import save_in_one_file


def save_for_web(path: Path, output: Path) -> None:
    """Write an ONNX file anew for onnxruntime-web, its weights in it.

    Args:
        path: The file, its weights in it or beside it.
        output: Where to.

    Raises:
        QuantizeError: It is too large for one file: a protobuf message ends at 2 GiB.
    """
    save_in_one_file(path, output)
    model = ir.load(output)
    if write_out_lookups(model):
        ir.save(model, output)


def write_out_lookups(model: ir.Model) -> int:
    """Replace every GatherBlockQuantized by standard operators, in place.

    Args:
        model: In which tables lie in blocks along their rows, as this library and most others store them.

    Returns:
        How many there were; one that looks up in another way stays as it is.
    """
    found = [node for node in model.graph.all_nodes() if _is_block_lookup(node)]
    for node in found:
        _write_out(node)
    if found and not any(node.domain == "com.microsoft" for node in model.graph.all_nodes()):
        del model.opset_imports["com.microsoft"]
    return len(found)


def _is_block_lookup(node: ir.Node) -> bool:
    if node.op_type != "GatherBlockQuantized" or node.domain != "com.microsoft":
        return False
    data, ids, scales = node.inputs[:3]
    # Reshape below keeps the first two sizes by a 0 each: ids are (B, S).
    plain = data is not None and data.dtype == ir.DataType.UINT8 and scales is not None
    along_rows = node.attributes.get_int("gather_axis", 0) == 0 and node.attributes.get_int("quantize_axis", 1) == 1
    return plain and along_rows and ids is not None and ids.shape is not None and len(ids.shape) == 2


def _write_out(node: ir.Node) -> None:
    # Before: GatherBlockQuantized(data (V, D), ids (B, S), scales (V, b), zero points)
    # After:  (rows (B, S, b, D / b) - zero points (B, S, b, 1)) · scales (B, S, b, 1) → (B, S, D)
    data, ids, scales, *rest = node.inputs
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    graph, before = node.graph, f"{node.name or node.outputs[0].name}/"
    nodes: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes, name=f"{before}{op}_{len(nodes)}"))
        return nodes[-1].outputs[0]

    def constant(*values: int, dtype: type = np.int64) -> ir.Value:
        # Shapes are lists, and what is computed with is a number by itself.
        tensor = ir.tensor(np.array(values if dtype is np.int64 else values[0], dtype))
        nodes.append(ir.node("Constant", [], {"value": tensor}, name=f"{before}Constant_{len(nodes)}"))
        return nodes[-1].outputs[0]

    def whole(table: ir.Value | None) -> ir.Value:
        """Look rows of whole numbers up, two of which lie in a byte where they have 4 bits, the lower one first."""
        rows = add("Gather", [table, ids], axis=0)
        if bits == 8:
            return rows
        rows = add("Cast", [rows], to=ir.DataType.INT32)
        high = add("Div", [rows, constant(16, dtype=np.int32)])
        low = add("Sub", [rows, add("Mul", [high, constant(16, dtype=np.int32)])])
        pairs = add("Concat", [add("Unsqueeze", [half, constant(-1)]) for half in (low, high)], axis=-1)
        return add("Reshape", [pairs, constant(0, 0, -1)])

    # Tables of scales are float32, or float16 where the graph computes by that.
    number = (scales.dtype if scales is not None else None) or ir.DataType.FLOAT
    scale = add("Unsqueeze", [add("Gather", [scales, ids], axis=0), constant(-1)])
    blocks = add("Reshape", [add("Cast", [whole(data)], to=number), constant(0, 0, -1, block)])
    if rest and rest[0] is not None:
        zero = add("Unsqueeze", [add("Cast", [whole(rest[0])], to=number), constant(-1)])
    else:  # the middle of the range
        zero = add("Cast", [constant(1 << (bits - 1), dtype=np.int32)], to=number)
    values = add("Mul", [add("Sub", [blocks, zero]), scale])
    result = add("Reshape", [values, constant(0, 0, -1)])
    old = node.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    old.name = f"{old.name}_in_blocks"
    # It was found in one.
    assert graph is not None
    graph.insert_before(node, nodes)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
