"""int8 against its definition in numpy: rounding, the products, the embeddings, and what is left alone."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfm.errors import QuantizeError
from tfm.export import graphs_of, to_onnx, verify
from tfm.export.passes import OP_KEY
from tfm.export.verify.samples import cases
from tfm.quantize import QuantizedWeight, quantize_int8
from tfm.quantize.methods.rounding import round_symmetric

Array = np.ndarray
ExportTiny = Callable[..., dict[str, Any]]

WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((3, 5, 24)).astype(np.float32), RNG.standard_normal((3, 5, 16)).astype(np.float32)
W = RNG.standard_normal((24, 16)).astype(np.float32)  # 384 elements: large enough to be quantized
BIAS = RNG.standard_normal(16).astype(np.float32)


# ------------------------------------------------ rounding


@given(WEIGHTS, st.sampled_from([0, 1]))
def test_rounding_is_symmetric_with_one_scale_along_the_axis(weight: Array, axis: int) -> None:
    rounded, scale = round_symmetric(weight, axis)
    assert rounded.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == tuple(1 if index == axis else size for index, size in enumerate(weight.shape))
    assert (scale > 0).all()
    assert np.abs(rounded.astype(int)).max() <= 127
    error = np.abs(rounded.astype(np.float64) * scale - weight)
    assert (
        error <= scale * (0.5 + 1e-4)
    ).all()  # half a step, and the rounding of weight / scale in float32: 127 · 2⁻²⁴
    largest = np.abs(weight).max(axis=axis, keepdims=True)
    reaches = np.abs(rounded.astype(int)).max(axis=axis, keepdims=True)
    assert (reaches[largest > 0] == 127).all()
    opposite, same_scale = round_symmetric(-weight, axis)
    np.testing.assert_array_equal(opposite, -rounded)
    np.testing.assert_array_equal(same_scale, scale)


def test_zero_columns_stay_zero() -> None:
    rounded, scale = round_symmetric(np.array([[0, 2], [0, -4]], np.float32), axis=0)
    np.testing.assert_array_equal(rounded, [[0, 64], [0, -127]])
    np.testing.assert_array_equal(scale, np.float32([[1, 4 / 127]]))


# ------------------------------------------------ graphs of a few nodes


def constant(name: str, array: Any) -> ir.Value:
    array = np.asarray(array)
    return ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )


def value(name: str, *shape: int | str | None, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def model_of(
    inputs: list[ir.Value], nodes: list[ir.Node], outputs: dict[str, ir.Value], *constants: ir.Value
) -> ir.Model:
    for name, output in outputs.items():
        output.name, output.type = name, output.type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, list(outputs.values()), nodes=nodes, initializers=constants, opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, **feeds: Array) -> list[Array]:
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feeds)


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def product(x: Array, weight: Array) -> Array:
    """Dynamic quantization by its definition (ONNX DynamicQuantizeLinear, uint8) times int8 weights, in float64."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / step), 0, 255)
    quantized = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64)
    rounded, scale = round_symmetric(weight, 0)
    return (quantized - int(zero)) @ rounded.astype(np.int64) * np.float64(step) * scale[0].astype(np.float64)


# The integers are exact; what is left is the float32 product of two scales, and the addition of the bias.
ATOL = 1e-5


def test_a_product_with_a_bias() -> None:
    x, weight, bias = value("x", "B", "S", 24), constant("w", W), constant("b", BIAS)
    matmul = ir.node("MatMul", [x, weight])
    add = ir.node("Add", [bias, matmul.outputs[0]])
    model = model_of([x], [matmul, add], {"y": add.outputs[0]}, weight, bias)
    (done,) = quantize_int8(model)
    assert (done.name, done.op, done.shape) == ("w", "matmul", (24, 16))
    exact, rounded = W.astype(np.float64), np.multiply(*round_symmetric(W, 0), dtype=np.float64)
    assert done.snr_db == pytest.approx(10 * np.log10((exact**2).sum() / ((exact - rounded) ** 2).sum()), abs=1e-3)
    assert types(model) == ["DynamicQuantizeMatMul"]
    assert set(model.graph.initializers) == {"w_int8", "w_scale", "b"}
    np.testing.assert_allclose(run(model, x=X)[0], product(X, W) + BIAS, atol=ATOL, rtol=0)


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0], ids=["all below 0", "about 0", "all above 0"])
@pytest.mark.parametrize("rows", [(1, 1), (1, 7), (4, 128)], ids=str)
def test_a_product_without_a_bias(rows: tuple[int, int], shift: float) -> None:
    x, weight = value("x", "B", "S", 24), constant("w", W)
    matmul = ir.node("MatMul", [x, weight])
    model = model_of([x], [matmul], {"y": matmul.outputs[0]}, weight)
    quantize_int8(model)
    assert types(model) == ["DynamicQuantizeMatMul"]
    array = (np.random.default_rng(1).standard_normal((*rows, 24)) + shift).astype(np.float32)
    found = run(model, x=array)[0]
    step = max(array.max(), 0) - min(array.min(), 0)
    # A value halfway between two steps may be rounded to either: one step, times the largest weight.
    np.testing.assert_allclose(found, product(array, W), atol=ATOL + step / 255 * np.abs(W).max(), rtol=0)
    assert np.abs(found - product(array, W)).mean() < 1e-3


def test_a_product_that_is_a_graph_output_keeps_its_bias_apart() -> None:
    x, weight, bias = value("x", "B", "S", 24), constant("w", W), constant("b", BIAS)
    matmul = ir.node("MatMul", [x, weight])
    add = ir.node("Add", [matmul.outputs[0], bias])
    model = model_of([x], [matmul, add], {"bare": matmul.outputs[0], "y": add.outputs[0]}, weight, bias)
    quantize_int8(model)
    assert types(model) == ["DynamicQuantizeMatMul", "Add"]
    assert [output.name for output in model.graph.outputs] == ["bare", "y"]
    bare, y = run(model, x=X)
    np.testing.assert_allclose(bare, product(X, W), atol=ATOL, rtol=0)
    np.testing.assert_allclose(y, product(X, W) + BIAS, atol=ATOL, rtol=0)


def test_a_product_used_twice_keeps_its_bias_apart() -> None:
    x, weight, bias = value("x", "B", "S", 24), constant("w", W), constant("b", BIAS)
    matmul = ir.node("MatMul", [x, weight])
    add, negated = ir.node("Add", [matmul.outputs[0], bias]), ir.node("Neg", matmul.outputs)
    outputs = {"y": add.outputs[0], "z": negated.outputs[0]}
    model = model_of([x], [matmul, add, negated], outputs, weight, bias)
    quantize_int8(model)
    assert types(model) == ["DynamicQuantizeMatMul", "Add", "Neg"]
    y, z = run(model, x=X)
    np.testing.assert_allclose(y, product(X, W) + BIAS, atol=ATOL, rtol=0)
    np.testing.assert_allclose(z, -product(X, W), atol=ATOL, rtol=0)


def test_a_product_added_to_itself() -> None:
    x, weight = value("x", "B", "S", 24), constant("w", W)
    matmul = ir.node("MatMul", [x, weight])
    add = ir.node("Add", [matmul.outputs[0], matmul.outputs[0]])
    model = model_of([x], [matmul, add], {"y": add.outputs[0]}, weight)
    quantize_int8(model)
    np.testing.assert_allclose(run(model, x=X)[0], 2 * product(X, W), atol=2 * ATOL, rtol=0)


BIASES = {
    "matrix": RNG.standard_normal((5, 16)).astype(np.float32),
    "row": RNG.standard_normal((1, 1, 16)).astype(np.float32),
    "scalar": np.float32(0.5),
    "one number": np.float32([0.5]),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases_that_are_not_vectors_of_the_output_size_stay_apart(name: str) -> None:
    bias = BIASES[name]
    x, weight, other = value("x", "B", 5, 24), constant("w", W), constant("b", bias)
    matmul = ir.node("MatMul", [x, weight])
    add = ir.node("Add", [matmul.outputs[0], other])
    model = model_of([x], [matmul, add], {"y": add.outputs[0]}, weight, other)
    quantize_int8(model)
    np.testing.assert_allclose(run(model, x=X)[0], product(X, W) + bias, atol=ATOL, rtol=0)


def test_a_residual_is_no_bias() -> None:
    x, y, weight = value("x", "B", "S", 24), value("r", "B", "S", 16), constant("w", W)
    matmul = ir.node("MatMul", [x, weight])
    add = ir.node("Add", [y, matmul.outputs[0]])
    model = model_of([x, y], [matmul, add], {"y": add.outputs[0]}, weight)
    quantize_int8(model)
    assert types(model) == ["DynamicQuantizeMatMul", "Add"]
    np.testing.assert_allclose(run(model, x=X, r=Y)[0], product(X, W) + Y, atol=ATOL, rtol=0)


def test_a_weight_on_the_left_is_left_alone() -> None:
    x, left, right = value("x", 24, "S"), constant("l", W.T.copy()), constant("r", W)
    first = ir.node("MatMul", [left, x])
    model = model_of([x], [first], {"y": first.outputs[0]}, left)
    with pytest.raises(QuantizeError):
        quantize_int8(model)
    assert types(model) == ["MatMul"]
    assert right.const_value is not None


def test_products_of_two_activations_are_left_alone() -> None:
    x, y, weight = value("x", "B", "S", 24), value("r", "B", "S", 16), constant("w", W)
    transposed = ir.node("Transpose", [y], {"perm": [0, 2, 1]})
    inner = ir.node("MatMul", [x, weight])
    outer = ir.node("MatMul", [inner.outputs[0], transposed.outputs[0]])
    model = model_of([x, y], [transposed, inner, outer], {"y": outer.outputs[0]}, weight)
    assert [done.name for done in quantize_int8(model)] == ["w"]
    assert sorted(types(model)) == ["DynamicQuantizeMatMul", "MatMul", "Transpose"]


@pytest.mark.parametrize(
    "weight",
    [
        RNG.standard_normal((24, 10)).astype(np.float32),
        W.astype(np.float64),
        RNG.standard_normal((2, 24, 16)).astype("f"),
    ],
    ids=["too small", "float64", "3-D"],
)
def test_other_weights_are_left_alone(weight: Array) -> None:
    dtype = ir.DataType.from_numpy(weight.dtype)
    x, held = value("x", 2, 5, 24, dtype=dtype), constant("w", weight)
    matmul = ir.node("MatMul", [x, held])
    matmul.outputs[0].type = ir.TensorType(dtype)
    model = model_of([x], [matmul], {"y": matmul.outputs[0]}, held)
    with pytest.raises(QuantizeError, match="the graph 'g' has no MatMul or Gather by a constant to quantize"):
        quantize_int8(model)
    assert types(model) == ["MatMul"]


def test_a_weight_that_two_products_share_is_stored_once() -> None:
    x, y, weight = value("x", "B", "S", 24), value("z", "B", "S", 24), constant("w", W)
    nodes = [ir.node("MatMul", [x, weight]), ir.node("MatMul", [y, weight])]
    model = model_of([x, y], nodes, {"a": nodes[0].outputs[0], "b": nodes[1].outputs[0]}, weight)
    quantize_int8(model)
    assert set(model.graph.initializers) == {"w_int8", "w_scale"}
    a, b = run(model, x=X, z=2 * X)
    np.testing.assert_allclose(a, product(X, W), atol=ATOL, rtol=0)
    np.testing.assert_allclose(b, product(2 * X, W), atol=2 * ATOL, rtol=0)


def test_a_table_tied_to_a_product_is_quantized_for_both() -> None:
    """A weight read by rows and multiplied by: each use has its own scales, and neither the other's."""
    table = RNG.standard_normal((24, 24)).astype(np.float32)
    x, ids, weight = value("x", "B", "S", 24), value("ids", "N", dtype=ir.DataType.INT64), constant("w", table)
    nodes = [ir.node("Gather", [weight, ids]), ir.node("MatMul", [x, weight])]
    model = model_of([x, ids], nodes, {"rows": nodes[0].outputs[0], "y": nodes[1].outputs[0]}, weight)
    assert {done.op for done in quantize_int8(model)} == {"embedding", "matmul"}
    rows, y = run(model, x=X, ids=np.array([3, 0, 23]))
    rounded, scale = round_symmetric(table, 1)
    np.testing.assert_array_equal(rows, (rounded * scale)[[3, 0, 23]])
    np.testing.assert_allclose(y, product(X, table), atol=ATOL, rtol=0)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 1)], ids=str)
def test_embedding_rows(shape: tuple[int, ...]) -> None:
    table = RNG.standard_normal((30, 12)).astype(np.float32)
    table[7] = 0
    ids, held = value("ids", *shape, dtype=ir.DataType.INT64), constant("table", table)
    gather = ir.node("Gather", [held, ids])
    model = model_of([ids], [gather], {"y": gather.outputs[0]}, held)
    (done,) = quantize_int8(model)
    assert (done.name, done.op, done.shape) == ("table", "embedding", (30, 12))
    rounded, scale = round_symmetric(table, 1)
    wanted = np.random.default_rng(2).integers(30, size=shape)
    wanted.flat[0] = 7
    np.testing.assert_array_equal(run(model, ids=wanted)[0], (rounded * scale)[wanted])
    assert set(model.graph.initializers) == {"table_rows_int8", "table_rows_scale"}


def test_a_gather_along_another_axis_is_left_alone() -> None:
    ids, held = value("ids", "N", dtype=ir.DataType.INT64), constant("table", W)
    gather = ir.node("Gather", [held, ids], {"axis": 1})
    with pytest.raises(QuantizeError, match="has no MatMul or Gather by a constant"):
        quantize_int8(model_of([ids], [gather], {"y": gather.outputs[0]}, held))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op_type", ["MatMul", "Gather"])
def test_a_weight_that_is_not_finite_is_refused(op_type: str, bad: float) -> None:
    weight = W.copy()
    weight[3, 4] = bad
    held = constant("layers.0.weight", weight)
    other = value("x", 2, 24) if op_type == "MatMul" else value("ids", "N", dtype=ir.DataType.INT64)
    node = ir.node(op_type, [other, held] if op_type == "MatMul" else [held, other])
    with pytest.raises(QuantizeError, match=r"the weight 'layers\.0\.weight' holds NaN or infinity"):
        quantize_int8(model_of([other], [node], {"y": node.outputs[0]}, held))


# ------------------------------------------------ whole models


ENCODER = {"kind": "encoder", "activation": "gelu", "num_encoder_layers": 2, "pooling": "mean", "pooler": True}
BOTH = {"kind": "encoder-decoder", "activation": "silu", "norm_first": True, "num_decoder_layers": 2}


@pytest.mark.parametrize("options", [ENCODER, BOTH], ids=lambda options: options["kind"])
def test_attention_and_activations_stay_and_are_verified(
    export_tiny: ExportTiny, tmp_path: Path, options: dict[str, Any]
) -> None:
    for exported in export_tiny(**options).values():
        model = ir.load(exported.path)
        before = variants(model)
        done = quantize_int8(model)
        after = variants(model)
        assert after.keys() == before.keys()
        changed = {op: variant for op, variant in after.items() if variant != before[op]}
        assert all(op.startswith(("linear", "embedding")) for op in changed)
        assert set(changed.values()) <= {"DynamicQuantizeMatMul", "Gather Cast Gather Mul"}
        assert "MatMul" not in types(model) or all(
            node.inputs[1].const_value.size < 256 for node in model.graph if node.op_type == "MatMul"
        )
        assert all(weight.snr_db > 30 for weight in done)  # eight bits of a normal distribution: about 40 dB
        path = tmp_path / "int8.onnx"
        ir.save(model, path)
        report = verify(exported.graph, path, cases(exported.graph), precision="int8")
        assert report.passed, report.first_fault
        assert all(op.free_limit is None and op.own.max_abs <= op.own_limit for op in report.promised)
        assert {op.weights for op in report.ops if op.is_layer} <= {"identical", "quantized"}
        assert all(output.limit is None and output.figures.max_abs > 0 for output in report.outputs)


def variants(model: ir.Model) -> dict[str, str]:
    """Op → the types of its nodes."""
    found: dict[str, list[str]] = {}
    for node in model.graph:
        if OP_KEY in node.metadata_props:
            found.setdefault(node.metadata_props[OP_KEY], []).append(node.op_type)
    return {op: " ".join(types) for op, types in found.items()}


def test_a_larger_model_gets_about_four_times_smaller(make_model: Any, tmp_path: Path) -> None:
    (graph,) = graphs_of(make_model(kind="encoder", d_model=128, dim_feedforward=512, vocab_size=500))
    model = to_onnx(graph)
    ir.save(model, tmp_path / "fp32.onnx")
    done = quantize_int8(model)
    ir.save(model, tmp_path / "int8.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("fp32.onnx", "int8.onnx")]
    assert sizes[0] / sizes[1] >= 3.5
    assert [(weight.op, weight.shape) for weight in done] == [
        ("embedding", (500, 128)),
        ("embedding", (16, 128)),
        *[("matmul", shape) for shape in itertools.chain([(128, 384), (128, 128), (128, 512), (512, 128)])],
    ]
    assert all(isinstance(weight, QuantizedWeight) for weight in done)


def test_a_quantized_graph_is_refused_by_name(export_tiny: ExportTiny) -> None:
    model = ir.load(export_tiny(kind="encoder", activation="relu")["model"].path)
    quantize_int8(model)
    with pytest.raises(QuantizeError, match="the graph 'model' is quantized already: 'node_Gather_0' is a Gather of"):
        quantize_int8(model)
