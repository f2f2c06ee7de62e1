"""Static int8: its definition, the emulation and the graph, against whole numbers and onnxruntime."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tfm.errors import QuantizeError
from tfm.quantize.methods.edit import initializer
from tfm.quantize.methods.rounding import round_symmetric
from tfm.quantize.methods.static_nodes import (
    emulate_static,
    fake_quantize,
    quantize_linear,
    scale_and_zero,
    write_static,
)

Array = np.ndarray
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
RNG = np.random.default_rng(0)
NUMBERS = st.floats(0, 1e6, width=32, allow_subnormal=False)


# ------------------------------------------------ scale and zero point


@given(NUMBERS, NUMBERS)
def test_0_is_exact_and_both_ends_are_within_half_a_step(below: float, high: float) -> None:
    assume(below + high > 1e-35)  # below that there is no such scale in float32
    low = -below
    scale, zero = scale_and_zero(low, high)
    assert scale.dtype == np.float32
    assert zero.dtype == np.uint8
    assert scale > 0
    step, point = float(scale), int(zero)
    # half a step, and what the scale is rounded by: 255 · 2⁻²⁴ of it
    assert -point * step == pytest.approx(low, abs=0.5001 * step)
    assert (255 - point) * step == pytest.approx(high, abs=0.5001 * step)
    assert fake_quantize(np.zeros(1, np.float32), low, high) == 0


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 0, (1, 0)), (0, 255, (1, 0)), (-255, 0, (1, 255)), (-1, 254, (1, 1)), (-2.0, 1.0, (3 / 255, 170))],
)
def test_ranges_by_hand(low: float, high: float, wanted: tuple[float, int]) -> None:
    scale, zero = scale_and_zero(low, high)
    assert (scale, zero) == (np.float32(wanted[0]), wanted[1])


def test_a_range_too_small_for_float32_has_a_scale_of_1() -> None:
    assert scale_and_zero(0, 1e-38) == (1, 0)
    assert scale_and_zero(-3e38, 3e38)[0] == np.float32(6e38 / 255)


@pytest.mark.parametrize("ends", [(0.1, 1), (-1, -0.1), (np.nan, 1), (0, np.nan), (-np.inf, 0), (0, np.inf)], ids=str)
def test_other_ranges_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(QuantizeError, match="a range of activations must be finite and contain 0, but is"):
        scale_and_zero(*ends)
    with pytest.raises(QuantizeError, match="must be finite and contain 0"):
        emulate_static(np.ones((2, 3), "f"), np.ones((3, 4), "f"), *ends, np.ones(3, np.float32))


# ------------------------------------------------ graphs


def value(name: str, *shape: int | str | None) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def graph_of(
    weight_KN: Array, ends: tuple[float, float], bias: Array | None, opset: int = 23, limit: int = 127
) -> ir.Model:
    x = value("x", "B", "S", len(weight_KN))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": opset, "com.microsoft": 1}, name="g")
    rounded_KN, scale_1N = round_symmetric(weight_KN, axis=0, limit=limit)
    weights = initializer(graph, "w_int8", rounded_KN), initializer(graph, "w_scale", scale_1N[0])
    addend = None if bias is None else initializer(graph, "b", bias)
    nodes = write_static(graph, x, *weights, addend, scale_and_zero(*ends), "x_in")
    graph.extend(nodes)
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def session(model: ir.Model, level: str = "ENABLE_ALL", saved: Any = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 3
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, x: Array, **options: Any) -> Array:
    (found,) = session(model, **options).run(None, {"x": x})
    return found


def definition(x: Array, weight_KN: Array, ends: tuple[float, float], bias: Array | None, limit: int = 127) -> Array:
    """By whole numbers, and scales in float64."""
    scale, zero = scale_and_zero(*ends)
    quantized = np.clip(np.rint(x / scale) + int(zero), 0, 255).astype(np.int64) - int(zero)
    rounded_KN, scale_1N = round_symmetric(weight_KN, axis=0, limit=limit)
    product = quantized @ rounded_KN.astype(np.int64) * (float(scale) * scale_1N.astype(np.float64))
    return product if bias is None else product + bias


def tolerance(result: Array) -> float:
    """The integers are exact; what is left is float32's rounding of two scales' product, of it and of the bias.

    The most measured in 400 random cases is 1.3e-7 of the largest result.
    """
    return 5e-7 * float(np.abs(result).max()) + 1e-30


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 70), st.integers(1, 40)),
    below=st.floats(0, 6, width=32),
    high=st.floats(0, 6, width=32),
    with_bias=st.booleans(),
    limit=st.sampled_from([64, 127]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_graph_the_emulation_and_the_definition_agree(
    shape: tuple[int, int, int, int], below: float, high: float, with_bias: bool, limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    b, s, k, n = shape
    x, weight = rng.standard_normal((b, s, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if with_bias else None
    ends = -below, high
    # a pair of products beyond int16 would saturate on some machines, which is another test's matter
    if limit > 64:
        x = np.clip(x, None, low_half(ends))
    wanted = definition(x, weight, ends, bias, limit)
    found = run(graph_of(weight, ends, bias, limit=limit), x)
    largest = tolerance(np.abs(wanted) + (0 if bias is None else np.abs(bias)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=largest)
    emulated = emulate_static(x.reshape(-1, k), weight, *ends, np.ones(k, np.float32), limit)
    product = definition(x, weight, ends, None, limit).reshape(-1, n)
    # sums of up to 70 products in float32, where the graph has whole numbers; the most measured is 1.4e-7 of the bound
    bound = np.abs(fake_quantize(x.reshape(-1, k), *ends)) @ np.abs(weight)
    np.testing.assert_allclose(emulated, product, rtol=0, atol=1e-6 * float(bound.max()) + 1e-30)


def low_half(ends: tuple[float, float]) -> np.float32:
    """The largest value that becomes at most 127: 2 · 127 · 127 is within int16."""
    scale, zero = scale_and_zero(*ends)
    return np.float32((127 - int(zero)) * float(scale))


@pytest.mark.parametrize("opset", [21, 23, 24])
@pytest.mark.parametrize("bias", [None, RNG.standard_normal(80).astype(np.float32)], ids=["no bias", "bias"])
def test_the_same_kernel_and_numbers_at_every_level(opset: int, bias: Array | None, tmp_path: Any) -> None:
    x, weight = RNG.standard_normal((2, 9, 96)).astype(np.float32), RNG.standard_normal((96, 80)).astype(np.float32)
    model = graph_of(weight, (-3.0, 2.5), bias, opset=opset, limit=64)
    found = []
    for level in LEVELS:
        saved = tmp_path / f"{level}.onnx"
        found.append(run(model, x, level=level, saved=saved))
        kernels = [node.op_type for node in onnx.load(saved).graph.node]
        assert kernels == ["QuantizeLinear", "MatMulIntegerToFloat"]
    wanted = definition(x, weight, (-3.0, 2.5), bias, limit=64)
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=tolerance(wanted))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_smoothing_goes_before() -> None:
    x, weight = RNG.standard_normal((20, 48)).astype(np.float32), RNG.standard_normal((48, 16)).astype(np.float32)
    scale_K = RNG.uniform(0.3, 3, 48).astype(np.float32)
    x *= scale_K
    smooth = x * (1 / scale_K)
    ends = float(smooth.min()), float(smooth.max())
    emulated = emulate_static(x, weight, *ends, scale_K)
    wanted = definition(smooth, weight * scale_K[:, None], ends, None)
    # sums of 48 products in float32
    np.testing.assert_allclose(emulated, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    exact = x.astype(np.float64) @ weight
    assert np.square(emulated - exact).sum() < 1e-3 * np.square(exact).sum()


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.floats(2**-10, 1e4, width=32))
@settings(max_examples=60, deadline=None)
def test_rounding_is_onnxruntimes(values: list[float], high: float) -> None:
    scale, zero = scale_and_zero(-high / 2, high)
    ties = (np.arange(-3, 4) + 0.5).astype(np.float32) * scale
    x = np.concatenate([np.float32(values), ties])
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [None])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in (("s", scale), ("z", zero))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    content = model.SerializeToString()
    (found,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(quantize_linear(x, scale, zero), found)


@pytest.mark.parametrize("constant", [0.0, 5.0, -5.0])
def test_constant_inputs(constant: float) -> None:
    x, weight = np.full((1, 3, 24), constant, np.float32), RNG.standard_normal((24, 16)).astype(np.float32)
    bias = RNG.standard_normal(16).astype(np.float32)
    ends = min(constant, 0.0), max(constant, 0.0)
    found = run(graph_of(weight, ends, bias, limit=64), x)
    rounded_KN, scale_1N = round_symmetric(weight, axis=0, limit=64)
    wanted = x @ (rounded_KN * scale_1N).astype(np.float64) + bias
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))


def test_an_empty_batch() -> None:
    found = run(
        graph_of(RNG.standard_normal((24, 16)).astype(np.float32), (-1.0, 1.0), None), np.empty((0, 3, 24), "f")
    )
    assert found.shape == (0, 3, 16)


def test_what_is_put_into_a_graph() -> None:
    """Constants that are there already are used; others of the same name are refused."""
    model = graph_of(RNG.standard_normal((24, 16)).astype(np.float32), (-1.0, 1.0), np.ones(16, np.float32))
    graph = model.graph
    quantize, product = graph
    assert (quantize.op_type, product.op_type) == ("QuantizeLinear", "MatMulIntegerToFloat")
    assert [v and v.name for v in product.inputs] == [
        quantize.outputs[0].name,
        "w_int8",
        "x_in_scale",
        "w_scale",
        "x_in_zero_point",
        None,
        "b",
    ]
    assert quantize.outputs[0].type == ir.TensorType(ir.DataType.UINT8)
    weights = graph.initializers["w_int8"], graph.initializers["w_scale"]
    before = list(graph.initializers)
    again = write_static(graph, graph.inputs[0], *weights, None, scale_and_zero(-1.0, 1.0), "x_in")
    assert list(graph.initializers) == before
    assert len(again[1].inputs) == 5
    for ends in ((-1.0, 2.0), (-2.0, 0.0)):  # another scale; the same, with another zero point
        with pytest.raises(QuantizeError, match=r"'g' has another constant 'x_in_.*'; each input needs its own name"):
            write_static(graph, graph.inputs[0], *weights, None, scale_and_zero(*ends), "x_in")
