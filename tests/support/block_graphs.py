"""Small graphs to quantize in blocks, and what the blocks of a matrix stand for."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from tfm.export.verify.optimized import options_for
from tfm.quantize.methods.block_rounding import Blocks

Array = np.ndarray
CPU = ["CPUExecutionProvider"]


def unpack(blocks: Blocks, bits: int, block: int, columns: int) -> Array:
    """The matrix that the packed one stands for, one entry after the other, in float64."""
    rows, count = blocks.scale.shape
    found = np.empty((rows, columns))

    def read(packed: Array, index: int) -> int:
        return int(packed[index]) if bits == 8 else int(packed[index // 2]) >> 4 * (index % 2) & 15

    for row in range(rows):
        for column in range(columns):
            group = column // block
            zero = 2 ** (bits - 1) if blocks.zero is None else read(blocks.zero[row], group)
            found[row, column] = (read(blocks.packed[row], column) - zero) * float(blocks.scale[row, group])
    assert blocks.packed.shape == (rows, count * block * bits // 8)
    assert blocks.zero is None or blocks.zero.shape == (rows, -(-count * bits // 8))
    return found


def constant(name: str, array: Array) -> ir.Value:
    return ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )


def value(name: str, *shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def model_of(
    inputs: list[ir.Value], nodes: list[ir.Node], outputs: dict[str, ir.Value], *constants: ir.Value, opset: int = 23
) -> ir.Model:
    for name, output in outputs.items():
        output.name, output.type = name, output.type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, list(outputs.values()), nodes=nodes, initializers=constants, opset_imports={"": opset}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, level: str = "all", **feeds: Array) -> list[Array]:
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options_for(level, CPU), providers=CPU).run(None, feeds)


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def tied(table: Array, opset: int = 23) -> ir.Model:
    """A table that rows are looked up in, and that their products are made with, transposed by a node."""
    ids, held = value("ids", "N", dtype=ir.DataType.INT64), constant("table", table)
    gather = ir.node("Gather", [held, ids], metadata_props={"op": "embedding"}, name="look")
    transpose = ir.node("Transpose", [held], {"perm": [1, 0]}, metadata_props={"op": "head"})
    matmul = ir.node("MatMul", [gather.outputs[0], transpose.outputs[0]], metadata_props={"op": "head"}, name="head")
    outputs = {"rows": gather.outputs[0], "logits": matmul.outputs[0]}
    return model_of([ids], [gather, transpose, matmul], outputs, held, opset=opset)
