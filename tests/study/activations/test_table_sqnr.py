"""SQNR: by hand, against onnxruntime's own rounding, and what is concluded of it."""

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tfm.study.activations.sqnr import per_tensor, per_token, summarize, text_sqnr


def quantized_by_onnxruntime(y: np.ndarray) -> np.ndarray:
    """DynamicQuantizeLinear and DequantizeLinear."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["T", "F"]))
    down = ir.Node("", "DynamicQuantizeLinear", [x], num_outputs=3)
    up = ir.Node("", "DequantizeLinear", down.outputs, num_outputs=1)
    up.outputs[0].name, up.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], up.outputs, nodes=[down, up], opset_imports={"": 21}, name="round")
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": y})[0]


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (5, 1), (-5, 1), (0.3, 40), (2, 1e-3)])
def test_a_scale_per_tensor_is_onnxruntimes(shift: float, scale: float) -> None:
    rng = np.random.default_rng(3)
    y = ((rng.standard_normal((9, 31)) + shift) * scale).astype(np.float32)
    found = per_tensor(y)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, quantized_by_onnxruntime(y))
    assert len(np.unique(found)) > 50


def test_a_scale_per_tensor_by_hand() -> None:
    """The range is [-1.25, 5.125], so a step is 6.375 / 255 = 1/40: all but 0.0125 + 1/160 lie on the grid.

    That lies three quarters of a step above 0, and is rounded to a whole step: off by 1/160.
    """
    y = np.array([[-1.25, 5.125], [2.5, 0.01875]], np.float32)
    signal = 1.25**2 + 5.125**2 + 2.5**2 + 0.01875**2
    assert text_sqnr([y], "per_tensor") == pytest.approx(10 * math.log10(signal * 160**2), abs=1e-3)


def test_a_scale_per_token_by_hand() -> None:
    """Steps of 1 and of 2: 3.25 is off by 0.25, -0.5 goes to the even 0, 101 = 50.5 steps to 50 steps, off by 1."""
    y = np.array([[127, 3.25, -0.5], [-254, 101, 0]], np.float32)
    signal, noise = 127**2 + 3.25**2 + 0.5**2 + 254**2 + 101**2, 0.25**2 + 0.5**2 + 1
    np.testing.assert_array_equal(per_token(y), [[127, 3, 0], [-254, 100, 0]])
    assert text_sqnr([y], "per_token") == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)


def test_an_outlying_token_costs_the_others_only_with_a_scale_per_tensor() -> None:
    y = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    outlying = y.copy()
    outlying[0] *= 50
    for scale, function in (("per_tensor", per_tensor), ("per_token", per_token)):
        noise = [np.square(function(one) - one)[1:].sum() for one in (y, outlying)]
        assert bool(noise[1] > 100 * noise[0]) is (scale == "per_tensor")  # 955 times, and not at all


def test_a_text_is_the_mean_over_its_layers_of_those_with_noise() -> None:
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal((5, 7)).astype(np.float32) * size for size in (1, 100)]
    each = [text_sqnr([y], "per_token") for y in layers]
    zeros = np.zeros((5, 7), np.float32)
    assert text_sqnr([*layers, zeros], "per_token") == pytest.approx(sum(each) / 2)
    for scale in ("per_tensor", "per_token"):
        assert math.isnan(text_sqnr([zeros, zeros], scale))


def test_differences_are_taken_text_by_text() -> None:
    """Texts differ by 20 dB among each other, so that only pairs show one decibel."""
    relu = np.random.default_rng(2).normal(40, 20, 32)
    found = summarize(relu - 1.0, relu)
    assert found.own is not None
    assert found.own.high - found.own.low > 5
    assert (found.verdict, found.said) == ("below", "below by 1.0 (1.0–1.0)")
    assert summarize(relu + 2.0, relu).said == "above by 2.0 (2.0–2.0)"
    assert found.beside_relu is not None
    assert found.beside_relu.value == pytest.approx(-1)


def test_noise_is_called_so() -> None:
    rng = np.random.default_rng(2)
    relu = rng.normal(40, 1, 32)
    noise = rng.normal(0, 1, 32)
    for own in (relu + noise, relu - noise):  # a median above relu's, and one below
        found = summarize(own, relu)
        assert (found.verdict, found.said) == ("no difference shown",) * 2
    assert summarize(relu, None).verdict is None


def test_texts_without_noise_do_not_count_and_nothing_is_nan() -> None:
    relu = np.full(8, 40.0)
    own = np.array([30.0] * 7 + [np.nan])
    found = summarize(own, relu).to_dict()
    assert (found["db"], found["low"], found["high"]) == (30, 30, 30)
    assert found["beside_relu"] == {"db": -10, "low": -10, "high": -10}
    none = summarize(np.full(8, np.nan), relu).to_dict()
    assert none == dict.fromkeys(["db", "low", "high", "beside_relu", "verdict", "said"])
