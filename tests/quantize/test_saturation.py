"""Saturation of u8·s8 products: against whole numbers in Python, and against what an emulated Haswell computed."""

import hashlib
import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfm.errors import QuantizeError
from tfm.quantize.methods import saturation as module
from tfm.quantize.methods.rounding import round_symmetric
from tfm.quantize.methods.saturation import SAFE_LIMIT, SaturationReport, saturating_matmul, saturation
from tfm.quantize.methods.static_nodes import write_static

Array = np.ndarray


def slow(a: Array, b: Array) -> tuple[list[list[int]], int]:
    """The product by its definition, one pair after the other, and how many pairs saturate."""
    rows, count = [], 0
    for row in a.tolist():
        sums = []
        for column in b.T.tolist():
            total = 0
            for k in range(0, len(row), 2):
                exact = sum(x * w for x, w in zip(row[k : k + 2], column[k : k + 2], strict=True))
                cut = max(-32768, min(32767, exact))
                count += cut != exact
                total += cut
            sums.append(total)
        rows.append(sums)
    return rows, count


@st.composite
def operands(draw: Any, largest: int = 128) -> tuple[Array, Array]:
    rows, inputs, outputs = (draw(st.integers(1, most)) for most in (4, 9, 5))
    extremes = st.one_of(st.sampled_from([0, 1, 127, 128, 129, 254, 255]), st.integers(0, 255))
    weights = st.one_of(st.sampled_from([-largest, largest - 1, 0, 64, -64]), st.integers(-largest, largest - 1))
    a = draw(arrays.arrays(np.uint8, (rows, inputs), elements=extremes))
    return a, draw(arrays.arrays(np.int8, (inputs, outputs), elements=weights))


@given(operands())
@settings(max_examples=300)
def test_the_product_is_that_of_the_definition(pair: tuple[Array, Array]) -> None:
    a, b = pair
    product = saturating_matmul(a, b)
    assert product.dtype == np.int32
    assert product.tolist() == slow(a, b)[0]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_product_does_not_depend_on_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (5, 31), np.uint8), rng.integers(-128, 128, (31, 6), np.int8)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert saturating_matmul(a, b).tolist() == slow(a, b)[0]


def test_7_bits_cannot_saturate_and_one_more_can() -> None:
    for first, second in itertools.product((-SAFE_LIMIT, SAFE_LIMIT), repeat=2):
        assert saturating_matmul(np.uint8([[255, 255]]), np.int8([[first], [second]])) == 255 * (first + second)
    assert saturating_matmul(np.uint8([[255, 255]]), np.int8([[SAFE_LIMIT], [SAFE_LIMIT + 1]])) == 32767 < 255 * 129
    weight = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    rounded, scale = round_symmetric(weight, axis=0, limit=SAFE_LIMIT)
    assert np.abs(rounded.astype(int)).max(0).tolist() == [SAFE_LIMIT] * 8
    assert (np.abs(rounded * scale - weight) <= scale * 0.5001).all()  # half a step, and float32's own rounding
    activations = np.full((1, 40), 255, np.uint8)
    assert (saturating_matmul(activations, rounded) == activations.astype(int) @ rounded).all()


# ------------------------------------------------ what such a processor computed
#
# Recorded from onnxruntime 1.32.0 on an emulated Haswell, which has AVX2 and no VNNI (qemu-x86_64-static -cpu Haswell):
# a MatMulInteger by constant weights, and a DynamicQuantizeMatMul with scales of 1 whose input has a scale of 1 and a
# zero point of 100. With VNNI 9 of the 15 numbers differ.

A = np.uint8([[255, 255, 255, 255, 255, 255, 7], [255, 129, 128, 0, 255, 1, 255], [254, 254, 200, 200, 129, 129, 0]])
B = np.int8(
    [
        [127, -128, 127, 64, 1],
        [127, -128, -127, 64, 127],
        [127, -127, 100, 64, -1],
        [2, -2, 100, 64, -127],
        [-127, 65, 127, -64, 127],
        [127, 64, 1, -64, 127],
        [127, -128, 0, -1, 127],
    ]
)
ON_HASWELL = [
    [66423, -33665, 65407, 32633, 33656],
    [49150, -65025, 61188, 16129, 81407],
    [58567, -41927, 49279, 41600, 39678],
]
DYNAMIC_ON_HASWELL = [
    [15423, 4735, 32607, 19933, -4444],
    [-1850, -26625, 28388, 3429, 43307],
    [7567, -3527, 16479, 28900, 1578],
]
SHA256_ON_HASWELL = {
    (1, 130, 17): "eeda04c2c900911e1ab3669bf6fc6fdba1962c554fb9273de0a2e09e7e9b4f43",
    (5, 130, 17): "c1922acfe3c916eb19b21c01a36ba0b73af1465ac8f8ae600ff2dce0792daf25",
    (9, 301, 40): "35e3ca85a9dcaef2909db6dc7e93dd904a5290bc19047d29931383fa2c2ac3b3",
}


def test_a_haswell_computed_the_same() -> None:
    assert saturating_matmul(A, B).tolist() == ON_HASWELL
    assert (A.astype(int) @ B != ON_HASWELL).sum() == 9
    # its zero point is taken off exactly
    assert (saturating_matmul(A, B) - 100 * B.sum(0, dtype=int)).tolist() == DYNAMIC_ON_HASWELL


@pytest.mark.parametrize("shape", SHA256_ON_HASWELL)
def test_a_haswell_computed_the_same_at_larger_shapes(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    a = (np.arange(rows * inputs) * 97 % 256).reshape(rows, inputs).astype(np.uint8)
    b = (np.arange(inputs * outputs) * 89 % 255 - 127).reshape(inputs, outputs).astype(np.int8)
    product = saturating_matmul(a, b).astype("<i4")
    assert hashlib.sha256(product.tobytes()).hexdigest() == SHA256_ON_HASWELL[shape]


# ------------------------------------------------ graphs


def value(name: str, array: Array) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name))


def static_graph_of(
    weight: Array, scale: float | Array = 1.0, quantization: tuple[Array, Array] = (np.float32(1), np.uint8(100))
) -> ir.Model:
    """A product in static int8, as it is written, beside a dynamic one."""
    model = graph_of({"dynamic": weight}, scale)
    graph = model.graph
    constants = graph.initializers["dynamic_w"], graph.initializers["dynamic_scale"]
    nodes = write_static(graph, graph.inputs[0], *constants, None, quantization, "x_in")
    graph.extend(nodes)
    nodes[-1].name, output = "static", nodes[-1].outputs[0]
    output.name, output.type = "static_y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(output)
    return model


def graph_of(weights: dict[str, Array], scale: float | Array = 1.0) -> ir.Model:
    """Products of the one input x by each of the weights."""
    x = ir.Value(name="x", shape=ir.Shape(["B", "S", None]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, constants, outputs = [], [], []
    for name, array in weights.items():
        new = [value(f"{name}_w", array), value(f"{name}_scale", np.full(array.shape[1], scale, np.float32))]
        nodes.append(ir.Node("com.microsoft", "DynamicQuantizeMatMul", [x, *new], num_outputs=1, name=name))
        constants += new
        output = nodes[-1].outputs[0]
        output.name, output.type = f"{name}_y", ir.TensorType(ir.DataType.FLOAT)
        outputs.append(output)
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=constants, opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10)


X = (A.astype(np.float32) - 100)[None]  # of scale 1 and zero point 100


def test_what_saturates_is_counted_and_measured() -> None:
    safe = np.int8(np.clip(B, -SAFE_LIMIT, SAFE_LIMIT))
    model = graph_of({"first": B, "safe": safe}, scale=0.5)
    before = ir.to_proto(model).SerializeToString()
    reports = saturation(model, [{"x": X}, {"x": X[:, :1]}])  # the second batch has the extremes -93 and 155
    assert list(reports) == ["first", "safe"]
    assert reports["safe"] == SaturationReport(
        weight="safe_w", columns=5, columns_at_risk=0, pairs=0, saturated=0, nmse=0.0
    )
    first = reports["first"]
    assert (first.weight, first.columns, first.columns_at_risk) == ("first_w", 5, 4)  # column 3 is all 64

    a, step, zero = dynamically_quantized(X[0, :1])
    assert not np.array_equal(a, A[:1])
    nmse = signal = 0.0
    for quantized, scale, point in ((A, 1.0, 100), (a, step, zero)):
        exact = quantized.astype(int) @ B.astype(int)
        nmse += float((((np.array(slow(quantized, B)[0]) - exact) * 0.5 * scale) ** 2).sum())
        signal += float((((exact - point * B.sum(0, dtype=int)) * 0.5 * scale) ** 2).sum())
    assert first.saturated == slow(A, B)[1] + slow(a, B)[1]
    assert first.pairs == (3 + 1) * 4 * 5  # rows, pairs, columns
    assert first.nmse == pytest.approx(nmse / signal, rel=1e-12)
    assert first.nmse > 0.1
    assert ir.to_proto(model).SerializeToString() == before


def dynamically_quantized(x: Array) -> tuple[Array, float, int]:
    """DynamicQuantizeLinear-11 by its definition."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32(high - low) / np.float32(255)
    zero = int(np.rint(np.float32(-low) / step))
    return np.clip(np.rint(x / step) + zero, 0, 255).astype(np.uint8), float(step), zero


def test_static_activations_have_the_scale_and_zero_point_of_the_graph() -> None:
    """Whatever they are; and what lies beyond their range is clipped, at 255 too."""
    scales = np.float32([0.5, 1, 2, 4, 8])
    batches = [{"x": X}, {"x": X[:, :1] * 4}]
    reports = saturation(static_graph_of(B, scale=scales), batches)
    assert list(reports) == ["dynamic", "static"]
    assert reports["dynamic"] == saturation(graph_of({"dynamic": B}, scale=scales), batches)["dynamic"]
    static = reports["static"]
    assert (static.weight, static.columns, static.columns_at_risk) == ("dynamic_w", 5, 4)

    beyond = np.clip(np.rint(X[0, :1] * 4) + 100, 0, 255).astype(np.uint8)
    assert (beyond == 255).any()
    nmse = signal = 0.0
    for quantized in (A, beyond):
        exact = quantized.astype(int) @ B.astype(int)
        nmse += float((((np.array(slow(quantized, B)[0]) - exact) * scales) ** 2).sum())
        signal += float((((exact - 100 * B.sum(0, dtype=int)) * scales) ** 2).sum())
    assert static.saturated == slow(A, B)[1] + slow(beyond, B)[1]
    assert static.pairs == (3 + 1) * 4 * 5  # rows, pairs, columns
    assert static.nmse == pytest.approx(nmse / signal, rel=1e-12)
    assert static.nmse != pytest.approx(reports["dynamic"].nmse, rel=0.05)


def test_static_7_bits_need_no_inputs() -> None:
    reports = saturation(static_graph_of(np.clip(B, -SAFE_LIMIT, SAFE_LIMIT).astype(np.int8)), [])
    assert [report.columns_at_risk for report in reports.values()] == [0, 0]


def test_activations_that_never_reach_far_do_not_saturate() -> None:
    """Of each two neighbors one is the lowest, which becomes 0."""
    x = np.float32([[[-155, 100, -155, 100, 100, -155, 0]]])
    report = saturation(graph_of({"first": B}), [{"x": x}])["first"]
    assert (report.columns_at_risk, report.pairs, report.saturated, report.nmse) == (4, 20, 0, 0.0)


def test_an_unsigned_weight_takes_another_kernel() -> None:
    """Which multiplies u8 by u8 in 16 bits each, without saturation."""
    reports = saturation(graph_of({"first": np.full((4, 3), 255, np.uint8)}), [])
    assert reports["first"].columns_at_risk == 0


def test_graphs_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(QuantizeError, match=r"'first' may saturate, and there are no inputs to tell by"):
        saturation(graph_of({"first": B}), [])
    model = graph_of({"first": B})
    model.graph.initializers["first_w"].const_value = None
    with pytest.raises(QuantizeError, match=r"the weights of 'first' are no constant"):
        saturation(model, [{"x": X}])


@pytest.mark.parametrize("zero_point", ["computed", "int8", "none"])
def test_static_activations_of_another_form_are_refused(zero_point: str) -> None:
    model = static_graph_of(B)
    node = model.graph[-1]
    if zero_point == "none":
        node.replace_input_with(4, None)
    elif zero_point == "int8":
        node.replace_input_with(4, value("z", np.int8(0)))
    else:
        node.replace_input_with(4, ir.Value(name="z", type=ir.TensorType(ir.DataType.UINT8)))
    with pytest.raises(QuantizeError, match="the activations of 'static' have no constant zero point of uint8"):
        saturation(model, [{"x": X}])
    model = static_graph_of(B)
    model.graph[-1].replace_input_with(1, ir.Value(name="other"))
    with pytest.raises(QuantizeError, match=r"the weights of 'static' are no constant"):
        saturation(model, [{"x": X}])


def test_inside_a_branch_is_refused() -> None:
    inner = graph_of({"inner": B})
    x = inner.graph.inputs[0]
    inner.graph.inputs.clear()
    flag = ir.Value(name="flag", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    other = ir.Graph([], [ir.Value(name="z")], nodes=[], name="else")
    branches = [ir.AttrGraph("then_branch", inner.graph), ir.AttrGraph("else_branch", other)]
    node = ir.Node("", "If", [flag], branches, num_outputs=1)
    outer = ir.Graph([x, flag], list(node.outputs), nodes=[node], opset_imports={"": 21, "com.microsoft": 1})
    with pytest.raises(QuantizeError, match="'inner' lies within a branch or a loop"):
        saturation(ir.Model(outer, ir_version=10), [])


def test_the_machine_at_hand_agrees_where_nothing_saturates() -> None:
    """Whatever it is: products of 7-bit weights are exact everywhere."""
    safe = np.int8(np.clip(B, -SAFE_LIMIT, SAFE_LIMIT))
    content = ir.to_proto(graph_of({"safe": safe})).SerializeToString()
    (found,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": X})
    assert found[0].tolist() == (saturating_matmul(A, safe) - 100 * safe.sum(0, dtype=int)).tolist()
