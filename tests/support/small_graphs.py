"""Graphs of a few nodes with every way in which a weight can be read, and bundles of them that need no torch."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from tfm.quantize.methods.method import Method
from tfm.quantize.methods.registry import Blocks, Dynamic, Rotated, Static

Array = np.ndarray
K, N, V = 32, 24, 40  # inputs, outputs, ids

FLOATS, IDS = "float[B, S, 32]", "int64[B, S]"
KINDS = {
    "bias": (f"{FLOATS} x", "float[B, S, 24] y", "p = MatMul(x, w)  y = Add(p, b)"),
    "no bias": (f"{FLOATS} x", "float[B, S, 24] y", "h = Neg(x)  p = MatMul(h, w)  y = Relu(p)"),
    "transposed": (
        f"{FLOATS} x",
        "float[B, S, 24] y",
        "u = Transpose<perm=[1, 0]>(v)  p = MatMul(x, u)  y = Add(b, p)",
    ),
    "shared": (
        f"{FLOATS} x, {FLOATS} z",
        "float[B, S, 24] y",
        "h = Tanh(x)  p = MatMul(h, w)  q = Add(p, b)  r = MatMul(z, w)  y = Sub(q, r)",
    ),
    "lookup": (f"{IDS} i", "float[B, S, 32] y", "y = Gather(t, i)"),
    "lookup and output": (f"{IDS} i", "float[B, S, 32] h, float[B, S, 32] y", "h = Gather(t, i)  y = Tanh(h)"),
    "tied": (
        f"{IDS} i",
        "float[B, S, 40] y",
        "h = Gather(t, i)  g = Tanh(h)  u = Transpose<perm=[1, 0]>(t)  y = MatMul(g, u)",
    ),
    "tied, bias": (
        f"{IDS} i",
        "float[B, S, 40] y, float[B, S, 32] h",
        "h = Gather(t, i)  g = Tanh(h)  u = Transpose<perm=[1, 0]>(t)  p = MatMul(g, u)  y = Add(p, c)",
    ),
    "by rows and by columns": (
        f"{IDS} i",
        "float[B, S, 32] y",
        "h = Gather(s, i)  g = Tanh(h)  y = MatMul(g, s)",
    ),
}
"""Name → inputs, outputs, nodes."""
TABLES = ("lookup", "lookup and output", "tied", "tied, bias")
"""Those whose rows are looked up; what they are multiplied by, if anything, is the same rows."""

FORMS: list[Method] = [
    Dynamic(),
    Dynamic(alpha=0.7),
    Dynamic(by_row=True),
    Dynamic(alpha=0.5, by_row=True),
    Static(),
    Static(calibrator="mse", alpha=0.6),
    Blocks(bits=8),
    Blocks(bits=4, block=32),
    Blocks(bits=8, block=32, calibrated=False),
    Rotated(block=16),
    Rotated(block=32),
]


def forms_of(kind: str) -> list[Method]:
    """The forms that a kind can have: a table can be neither smoothed nor static."""
    bare = [m for m in FORMS if isinstance(m, Blocks) or (isinstance(m, Dynamic) and m.alpha is None)]
    return bare if kind in TABLES else FORMS


def constants(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (K, N), "v": (N, K), "t": (V, K), "s": (K, K), "b": (N,), "c": (V,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def graph_of(kind: str, **changes: Array) -> ir.Model:
    inputs, outputs, body = KINDS[kind]
    return parsed(inputs, outputs, body, **(constants() | changes))


def parsed(inputs: str, outputs: str, body: str, **values: Array) -> ir.Model:
    """A model from ONNX's text form; constants are those that it reads."""
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    kept = [onnx.numpy_helper.from_array(array, name) for name, array in values.items() if name in read]
    proto.graph.initializer.extend(kept)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node {number}"
    return ir.from_proto(proto)


def feeds_of(model: ir.Model, seed: int = 0, batch: int = 2, length: int = 3) -> dict[str, Array]:
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        size = [{"B": batch, "S": length}.get(str(dim), dim) for dim in value.shape]
        ids = value.dtype == ir.DataType.INT64
        feeds[value.name] = rng.integers(K, size=size) if ids else rng.standard_normal(size).astype(np.float32)
    return feeds


def run(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
