"""How each product is quantized: what the methods compute, and which is chosen when."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tfm.errors import QuantizeError
from tfm.quantize import Observed, observe, quantize_int8
from tfm.quantize.methods.dynamic import Dynamic
from tfm.quantize.methods.emulation import ALPHAS, choose, emulate
from tfm.quantize.methods.emulation import measure as measure_all
from tfm.quantize.methods.rounding import snr_db
from tfm.quantize.methods.smoothing import smoothing

Feeds = dict[str, np.ndarray]
K, N = 64, 48  # wide in, narrow out: rows may have scales of their own
METHODS = [Dynamic(alpha=alpha, by_row=by_row) for by_row in (False, True) for alpha in (None, *ALPHAS)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def product_model(weight_KN: np.ndarray, bias_N: np.ndarray | None = None) -> ir.Model:
    body = "h = Identity(x)  y = MatMul(h, w)" if bias_N is None else "h = Identity(x)  p = MatMul(h, w)  y = Add(p, b)"
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float[B, S, {K}] x) => (float[B, S, {N}] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight_KN, "w"))
    if bias_N is not None:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(bias_N, "b"))
    return ir.from_proto(proto)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def seen_of(rows_RK: np.ndarray, real_R: np.ndarray | None = None) -> Observed:
    real_R = np.ones(len(rows_RK), np.bool_) if real_R is None else real_R
    return Observed(np.abs(rows_RK).max(axis=0), [(rows_RK, real_R)])


def measure(seen: Observed, weight_KN: np.ndarray, method: Dynamic) -> float:
    return measure_all(seen, weight_KN, [method])[0]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def outlier_channels(rng: np.random.Generator) -> np.ndarray:
    rows = normal(rng, 40, K)
    rows[:, 5] *= 200
    return rows


def outlier_rows(rng: np.random.Generator) -> np.ndarray:
    rows = normal(rng, 40, K)
    rows[3] *= 200
    return rows


# ------------------------------------------------ what a method computes


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_the_graph_computes_what_was_emulated(
    rng: np.random.Generator, method: Dynamic, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfm.quantize.methods.int8.choose", lambda *_: method)
    weight, bias, rows = normal(rng, K, N), normal(rng, N) if biased else None, outlier_rows(rng)
    model, seen = product_model(weight, bias), seen_of(rows)
    (done,) = quantize_int8(model, {"h": seen})
    assert done.method == str(method)
    found = run(model, rows[None])[0] - (0 if bias is None else bias)
    # Another order of sums, and ties that round the other way: far less than the 30 dB that rounding costs.
    assert snr_db(emulate(rows, weight, method, seen.largest_K), found) > 45
    assert done.output_snr_db == pytest.approx(snr_db(rows @ weight, found), abs=0.5)


def test_smoothing_changes_nothing_but_the_rounding(rng: np.random.Generator) -> None:
    rows, weight = outlier_channels(rng), normal(rng, K, N)
    for alpha in ALPHAS:
        scale_K = smoothing(np.abs(rows).max(axis=0), weight, alpha)
        assert scale_K.mean() == pytest.approx(1, abs=1e-5)
        assert scale_K.argmax() == 5
        np.testing.assert_allclose((rows / scale_K) @ (weight * scale_K[:, None]), rows @ weight, rtol=1e-3, atol=1e-2)
    dead = np.zeros(K, np.float32)
    assert np.isfinite(smoothing(dead, np.zeros((K, N), np.float32), 0.9)).all()


def test_rows_of_zeros_stay_zero(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfm.quantize.methods.int8.choose", lambda *_: Dynamic(by_row=True, alpha=0.5))
    rows = normal(rng, 8, K)
    rows[2] = 0
    model = product_model(normal(rng, K, N))
    quantize_int8(model, {"h": seen_of(rows)})
    assert not run(model, rows[None])[0, 2].any()


# ------------------------------------------------ which is chosen


def test_what_is_even_stays_plain(rng: np.random.Generator) -> None:
    weight, rows = (rng.uniform(-1, 1, size).astype(np.float32) for size in ((K, N), (400, K)))
    assert choose(weight, seen_of(rows)) == Dynamic()


def test_outlier_channels_are_smoothed(rng: np.random.Generator) -> None:
    """The planted failure: one layer whose input has a channel 200 times as large as the rest."""
    weight, seen = normal(rng, K, N), seen_of(outlier_channels(rng))
    weight[5] /= 200  # the other channels matter as much
    method = choose(weight, seen)
    assert method.alpha is not None
    assert measure(seen, weight, Dynamic()) < 10
    assert measure(seen, weight, method) > 35


def test_outlier_rows_are_divided_out(rng: np.random.Generator) -> None:
    weight, rows = normal(rng, K, N), outlier_rows(rng)
    assert choose(weight, seen_of(rows)).by_row
    others = np.arange(len(rows)) != 3  # the batch-mates of the outlier
    seen = seen_of(rows, others)
    assert measure(seen, weight, Dynamic()) < 10
    assert measure(seen, weight, Dynamic(by_row=True)) > 35


def test_a_result_wider_than_the_input_is_not_scaled_by_row(rng: np.random.Generator) -> None:
    rows = outlier_rows(rng)
    assert not choose(normal(rng, K, K + 1), seen_of(rows)).by_row


def test_padding_shares_the_scale_but_is_not_judged(rng: np.random.Generator) -> None:
    weight, rows = normal(rng, K, N), outlier_rows(rng)
    real = np.arange(len(rows)) != 3
    without = measure(seen_of(rows[real]), weight, Dynamic())
    assert measure(seen_of(rows, real), weight, Dynamic()) < without - 20
    assert measure(seen_of(rows, real), weight, Dynamic(by_row=True)) == pytest.approx(
        measure(seen_of(rows[real]), weight, Dynamic(by_row=True)), abs=2
    )


# ------------------------------------------------ what is observed


def batches(*arrays: np.ndarray) -> Iterator[Feeds]:
    for array in arrays:
        yield {"x": array}


def test_observing(tmp_path: Path, rng: np.random.Generator) -> None:
    ir.save(product_model(normal(rng, K, N)), tmp_path / "m.onnx")
    first, second = normal(rng, 2, 3, K), normal(rng, 1, 5, K) * 7
    seen = observe(tmp_path / "m.onnx", batches(first, second))
    assert list(seen) == ["h"]
    both = np.concatenate([first.reshape(-1, K), second.reshape(-1, K)])
    np.testing.assert_array_equal(seen["h"].largest_K, np.abs(both).max(axis=0))
    assert [rows.shape for rows, _ in seen["h"].batches] == [(6, K), (5, K)]
    assert all(real.all() for _, real in seen["h"].batches)


def test_observing_no_more_than_is_needed(tmp_path: Path, rng: np.random.Generator) -> None:
    ir.save(product_model(normal(rng, K, N)), tmp_path / "m.onnx")
    seen = observe(tmp_path / "m.onnx", batches(*(normal(rng, 2, 100, K) for _ in range(20))))
    assert [len(rows) for rows, _ in seen["h"].batches] == [32] * 16


def test_what_cannot_be_observed(tmp_path: Path, rng: np.random.Generator) -> None:
    ir.save(product_model(normal(rng, K, N)), tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match="there is no calibration data"):
        observe(tmp_path / "m.onnx", [])
    with pytest.raises(
        QuantizeError, match="'h', which goes into a product, is NaN or infinite on the calibration data"
    ):
        observe(tmp_path / "m.onnx", batches(np.full((1, 2, K), np.nan, np.float32)))


def test_a_model_with_an_outlier_layer_is_rescued(export_tiny: Any, tmp_path: Path) -> None:
    """One channel of a feed-forward's hidden state 200 times as large: plain int8 loses it, the chosen mix does not."""
    from tfm.export.verify.samples import cases

    exported = export_tiny(
        kind="encoder", d_model=64, nhead=4, dim_feedforward=128, activation="relu", norm_first=True
    )["model"]
    model = ir.load(exported.path)
    first, second = (
        next(node for node in model.graph if node.metadata_props.get("tfm.op", "").endswith(f"feed_forward.linear{i}"))
        for i in (1, 2)
    )
    for node, axis, factor in ((first, 1, 200.0), (second, 0, 1 / 200.0)):
        array = node.inputs[1].const_value.numpy().copy()
        array[(slice(None), 7) if axis else 7] *= factor
        node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)
    ir.save(model, tmp_path / "fp32.onnx")
    inputs = [
        {value.name: tensor.numpy() for value, tensor in zip(exported.graph.inputs, case, strict=True)}
        for case in cases(exported.graph, count=8)
    ]
    expected = [ort.InferenceSession(tmp_path / "fp32.onnx").run(["last_hidden_state"], feeds)[0] for feeds in inputs]
    ratios = {}
    for name, seen in (("plain", None), ("chosen", observe(tmp_path / "fp32.onnx", iter(inputs)))):
        quantized = ir.load(tmp_path / "fp32.onnx")
        done = quantize_int8(quantized, seen)
        ir.save(quantized, tmp_path / f"{name}.onnx")
        session = ort.InferenceSession(tmp_path / f"{name}.onnx")
        found = [session.run(["last_hidden_state"], feeds)[0] for feeds in inputs]
        ratios[name] = snr_db(np.concatenate([e.ravel() for e in expected]), np.concatenate([f.ravel() for f in found]))
    assert ratios["chosen"] > ratios["plain"] + 3, ratios
    methods = {weight.name: weight.method for weight in done if weight.op == "matmul"}
    assert methods[str(second.inputs[1].name)] != "dynamic"  # the layer is named by what it needed
