"""Blocks of 8 and 4 bits against their definition in numpy: packing, zero points, ragged rows, tied tables, levels."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.block_graphs import constant, model_of, run, tied, types, unpack, value
from tfm.errors import QuantizeError
from tfm.export import graphs_of, to_onnx, verify
from tfm.export.verify.optimized import LEVELS
from tfm.export.verify.samples import cases
from tfm.quantize import BlockOptions, quantize_blocks, quantize_int8, quantize_to_blocks
from tfm.quantize.methods.block_rounding import round_to_blocks
from tfm.quantize.methods.blocks import BlockKeywords
from tfm.quantize.methods.hessian import second_moments

RNG = np.random.default_rng(0)

# Products in float32 (accuracy_level 0) of 80 inputs about 1: the largest difference seen is 3e-6.
ATOL = 2e-5


# ------------------------------------------------ rounding


@pytest.mark.parametrize("search", [False, True], ids=["nearest", "search"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["zero points", "symmetric"])
@pytest.mark.parametrize("columns", [64, 50, 33])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_within_a_step(bits: Any, columns: int, symmetric: bool, search: bool) -> None:
    weight = RNG.standard_normal((7, columns)).astype(np.float32)
    weight[3], weight[4, :16] = 0, 0
    blocks = round_to_blocks(weight, bits=bits, block=16, symmetric=symmetric, search=search)
    found = unpack(blocks, bits, 16, columns)
    error = np.abs(found - weight)
    step = np.abs(np.repeat(blocks.scale, 16, axis=1)[:, :columns].astype(float))
    if search:
        plain = round_to_blocks(weight, bits=bits, block=16, symmetric=symmetric, search=False)
        worse = np.square(error).sum() / np.square(unpack(plain, bits, 16, columns) - weight).sum()
        assert worse < (0.9 if bits == 4 else 1.0)
    else:
        # half a step; another for a zero point that is rounded; and what a scale of 11 bits moves the farthest value by
        assert (error <= step * ((0.5 if symmetric else 1) + 2 ** (bits - 1) * 2.0**-11 + 1e-3)).all()
    np.testing.assert_array_equal(found[3], 0)
    np.testing.assert_array_equal(found[4, :16], 0)
    signal, nmse = np.square(weight.astype(float)).sum(), np.square(error).sum()
    assert blocks.snr_db == pytest.approx(10 * np.log10(signal / nmse), abs=1e-3)


def test_a_grid_is_kept_exactly() -> None:
    """What was rounded before, with the same blocks, loses nothing."""
    grid = RNG.integers(-127, 128, (5, 64)).astype(np.float32)
    grid[:, ::32] = 127
    blocks = round_to_blocks(grid / 1024, bits=8, block=32, symmetric=True, search=False)
    np.testing.assert_array_equal(unpack(blocks, 8, 32, 64), grid / 1024)
    assert blocks.snr_db == np.inf


@pytest.mark.parametrize(("factor", "dtype"), [(1, np.float16), (1e8, np.float32), (1e-6, np.float32)])
def test_scales_are_float16_where_that_represents_them(factor: float, dtype: Any) -> None:
    weight = (RNG.standard_normal((5, 64)) * factor).astype(np.float32)
    blocks = round_to_blocks(weight, bits=8, block=32, symmetric=True, search=False)
    assert blocks.scale.dtype == dtype
    assert blocks.snr_db > 40  # eight bits of a normal distribution in blocks of 32: about 45 dB


def test_moments_make_the_products_change_less() -> None:
    """Inputs that go together: rounding that knows errs more in the weights and less in the products."""
    inputs = (
        RNG.standard_normal((500, 8)) @ RNG.standard_normal((8, 40)) + 0.1 * RNG.standard_normal((500, 40))
    ).astype(np.float32)
    weight = RNG.standard_normal((12, 40)).astype(np.float32)
    errors, losses = [], []
    for hessian in (None, inputs.T.astype(float) @ inputs / len(inputs)):
        blocks = round_to_blocks(weight, bits=4, block=16, symmetric=False, search=False, moments_KK=hessian)
        difference = unpack(blocks, 4, 16, 40) - weight
        errors.append(np.square(inputs @ difference.T).mean())
        losses.append(blocks.snr_db)
    assert errors[1] < 0.5 * errors[0]
    assert losses[1] < losses[0]


# ------------------------------------------------ graphs


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("opset", [23, 25])
@pytest.mark.parametrize("symmetric", [False, True], ids=["zero points", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_with_a_bias(bits: Any, symmetric: bool, opset: int, level: str) -> None:
    weight, bias = RNG.standard_normal((81, 14)).astype(np.float32), RNG.standard_normal(14).astype(np.float32)
    x, held, added = value("x", "B", "S", 81), constant("w", weight), constant("b", bias)
    matmul = ir.node("MatMul", [x, held], metadata_props={"op": "linear"})
    add = ir.node("Add", [added, matmul.outputs[0]], metadata_props={"op": "linear"}, name="sum")
    model = model_of([x], [matmul, add], {"y": add.outputs[0]}, held, added, opset=opset)
    (done,) = quantize_blocks(model, bits=bits, block=16, symmetric=symmetric, search=False, accuracy_level=0)
    assert (done.name, done.op, done.shape) == ("w", "matmul", (81, 14))
    assert types(model) == ["Reshape", "Cast", "MatMulNBits"]
    assert {node.metadata_props["op"] for node in model.graph} == {"linear"}
    assert model.graph[-1].name == "sum"
    assert "w" not in model.graph.initializers
    blocks = round_to_blocks(weight.T, bits=bits, block=16, symmetric=symmetric, search=False)
    array = RNG.standard_normal((2, 3, 81)).astype(np.float32)
    expected = array @ unpack(blocks, bits, 16, 81).T + bias
    np.testing.assert_allclose(run(model, level, x=array)[0], expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_activations_at_every_level(bits: Any, level: str) -> None:
    """accuracy_level 4, whose kernel packs the weight together with its scales."""
    weight = RNG.standard_normal((96, 14)).astype(np.float32)
    x, held = value("x", "B", 96), constant("w", weight)
    matmul = ir.node("MatMul", [x, held])
    model = model_of([x], [matmul], {"y": matmul.outputs[0]}, held)
    quantize_blocks(model, bits=bits, block=32, search=False)
    blocks = round_to_blocks(weight.T, bits=bits, block=32, symmetric=bits == 8, search=False)
    array = RNG.standard_normal((5, 96)).astype(np.float32)
    expected = array @ unpack(blocks, bits, 32, 96).T
    found = run(model, level, x=array)[0]
    # inputs of 7 bits and a sign in blocks: 0.4 % of the largest, which averages out; 0.8 % of the largest product seen
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["zero points", "symmetric"])
@pytest.mark.parametrize("columns", [64, 48, 41])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_table_is_stored_once(bits: Any, columns: int, symmetric: bool, level: str) -> None:
    # numbers of its own, and half as large as a normal's: a row's product with itself is then near 16, not 64, and
    # float32's own rounding of it (four of its last bits were seen) within ATOL whatever other tests drew before
    table = np.random.default_rng(bits * columns).normal(scale=0.5, size=(30, columns)).astype(np.float32)
    model = tied(table)
    done = quantize_blocks(model, bits=bits, block=16, symmetric=symmetric, accuracy_level=0)
    assert [(weight.name, weight.op, weight.shape) for weight in done] == [
        ("table", "embedding", (30, columns)),
        ("table", "matmul", (30, columns)),
    ]
    assert done[0].snr_db == done[1].snr_db
    large = [name for name, held in model.graph.initializers.items() if held.const_value.nbytes >= 30 * columns // 2]
    assert large == [f"table_rows_int{bits}_16"]
    assert "Transpose" not in types(model)
    assert {node.metadata_props["op"] for node in model.graph} == {"embedding", "head"}
    blocks = round_to_blocks(table, bits=bits, block=16, symmetric=symmetric, search=bits == 4)
    expected = unpack(blocks, bits, 16, columns)
    wanted = np.array([3, 0, 29, 3])
    rows, logits = run(model, level, ids=wanted)
    np.testing.assert_allclose(rows, expected[wanted], atol=1e-6, rtol=0)
    np.testing.assert_allclose(logits, expected[wanted] @ expected.T, atol=ATOL, rtol=0)


def test_tables_may_have_other_bits() -> None:
    model = tied(RNG.standard_normal((30, 64)).astype(np.float32))
    x, other = value("x", "B", 64), constant("w", RNG.standard_normal((64, 16)).astype(np.float32))
    matmul = ir.node("MatMul", [x, other], name="product")
    model.graph.append(matmul)
    model.graph.inputs.append(x)
    model.graph.register_initializer(other)
    matmul.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(matmul.outputs[0])
    quantize_blocks(model, bits=4, table_bits=8)
    bits = {node.name: node.attributes["bits"].as_int() for node in model.graph if "bits" in node.attributes}
    assert bits == {"look": 8, "head": 8, "product": 4}


def test_a_weight_that_two_products_share_is_stored_once() -> None:
    weight = RNG.standard_normal((64, 16)).astype(np.float32)
    x, y, held = value("x", "B", 64), value("z", "B", 64), constant("w", weight)
    nodes = [ir.node("MatMul", [x, held]), ir.node("MatMul", [y, held])]
    model = model_of([x, y], nodes, {"a": nodes[0].outputs[0], "b": nodes[1].outputs[0]}, held)
    assert len(quantize_blocks(model, bits=8, accuracy_level=0)) == 2
    assert set(model.graph.initializers) == {"w_int8_64", "w_int8_64_scale", "w_int8_64_shape"}
    expected = unpack(round_to_blocks(weight.T, bits=8, block=64, symmetric=True, search=False), 8, 64, 64).T
    array = RNG.standard_normal((3, 64)).astype(np.float32)
    for found, times in zip(run(model, x=array, z=2 * array), (1, 2), strict=True):
        np.testing.assert_allclose(found, times * array @ expected, atol=ATOL, rtol=0)


def test_a_weight_read_by_rows_and_by_columns_has_blocks_for_both() -> None:
    weight = RNG.standard_normal((32, 32)).astype(np.float32)
    x, ids, held = value("x", "B", 32), value("ids", "N", dtype=ir.DataType.INT64), constant("w", weight)
    nodes = [ir.node("Gather", [held, ids]), ir.node("MatMul", [x, held])]
    model = model_of([x, ids], nodes, {"rows": nodes[0].outputs[0], "y": nodes[1].outputs[0]}, held)
    quantize_blocks(model, bits=8, block=16, accuracy_level=0)
    array = RNG.standard_normal((3, 32)).astype(np.float32)
    rows, y = run(model, x=array, ids=np.array([5, 31]))
    by_rows, by_columns = (
        unpack(round_to_blocks(matrix, bits=8, block=16, symmetric=True, search=False), 8, 16, 32)
        for matrix in (weight, weight.T)
    )
    np.testing.assert_allclose(rows, by_rows[[5, 31]], atol=1e-6, rtol=0)
    np.testing.assert_allclose(y, array @ by_columns.T, atol=ATOL, rtol=0)


@pytest.mark.parametrize("quantize", [quantize_blocks, quantize_int8], ids=["blocks", "dynamic int8"])
def test_a_graph_already_quantized_is_refused_by_name(quantize: Callable[[ir.Model], Any]) -> None:
    model = tied(RNG.standard_normal((30, 64)).astype(np.float32))
    quantize(model)
    before = types(model)
    with pytest.raises(QuantizeError, match=r"the graph 'g' is quantized already: '\w+' is a \w+ of integers"):
        quantize_blocks(model)
    assert types(model) == before


def test_nothing_to_quantize_is_refused() -> None:
    x = value("x", 3)
    node = ir.node("Neg", [x])
    with pytest.raises(QuantizeError, match="the graph 'g' has no MatMul or Gather by a constant to quantize"):
        quantize_blocks(model_of([x], [node], {"y": node.outputs[0]}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    table = RNG.standard_normal((30, 64)).astype(np.float32)
    table[7, 9] = bad
    with pytest.raises(QuantizeError, match="the weight 'table' holds NaN or infinity"):
        quantize_blocks(tied(table))


@pytest.mark.parametrize("block", [8, 48, -32])
def test_block_sizes_that_onnxruntime_lacks_are_refused(block: int) -> None:
    model = tied(RNG.standard_normal((30, 64)).astype(np.float32))
    with pytest.raises(QuantizeError, match=f"blocks of {block} are not possible; choose a power of two"):
        quantize_blocks(model, block=block)


def test_a_node_without_a_weight_is_left_alone() -> None:
    x, y = value("x", 3, 64), value("z", 64, 3)
    node = ir.node("MatMul", [x, y])
    model = model_of([x, y], [node], {"y": node.outputs[0]})
    assert quantize_to_blocks(model.graph, node) is None
    assert types(model) == ["MatMul"]


def test_weights_beside_the_file_are_read_there(tmp_path: Path) -> None:
    ir.save(tied(RNG.standard_normal((30, 64)).astype(np.float32)), tmp_path / "a.onnx", external_data="a.onnx.data")
    model = ir.load(tmp_path / "a.onnx")
    assert isinstance(model.graph.initializers["table"].const_value, ir.ExternalTensor)
    quantize_blocks(model)
    assert run(model, ids=np.array([1]))[0].shape == (1, 64)


# ------------------------------------------------ calibration


@pytest.mark.parametrize("level", LEVELS)
def test_smoothing_divides_the_inputs_by_what_the_weights_are_multiplied_by(level: str) -> None:
    sizes = RNG.permutation(np.geomspace(0.01, 10, 64)).astype(np.float32)
    sizes[5] = 0  # an input that is always zero
    array = RNG.standard_normal((200, 64)).astype(np.float32) * sizes
    weight = RNG.standard_normal((64, 16)).astype(np.float32)
    losses = []
    for smoothing in (0, 0.5):
        x, held = value("x", "B", 64), constant("w", weight)
        matmul = ir.node("MatMul", [x, held], metadata_props={"op": "linear"})
        model = model_of([x], [matmul], {"y": matmul.outputs[0]}, held)
        hessian = {"x": array.T.astype(float) @ array / len(array)}
        quantize_blocks(model, bits=4, block=16, hessian=hessian, smoothing=smoothing, accuracy_level=0)
        losses.append(np.square(run(model, level, x=array)[0] - array @ weight).mean())
        assert ("Mul" in types(model)) == (smoothing > 0)
        assert {node.metadata_props["op"] for node in model.graph} == {"linear"}
    assert losses[1] < 0.6 * losses[0]
    factors = 1 / model.graph.initializers["w_int4_16_inverse_factors"].const_value.numpy()
    rms = np.sqrt(np.square(array).mean(axis=0))
    ratio = (factors / np.sqrt(np.where(rms > 0, rms, 1e-4 * rms.max()))).astype(float)
    np.testing.assert_allclose(ratio / ratio[0], 1, rtol=1e-5)
    scaled = hessian["x"] / np.outer(factors, factors)
    expected = round_to_blocks(weight.T * factors, bits=4, block=16, symmetric=False, search=True, moments_KK=scaled)
    packed = model.graph.initializers["w_int4_16"].const_value.numpy()
    assert (packed == expected.packed).mean() > 0.99  # the factors come back with the rounding of 1 / (1 / x)


@pytest.mark.parametrize("level", LEVELS)
def test_a_tied_table_is_smoothed_for_both_and_rounded_to_nearest(level: str) -> None:
    table = (RNG.standard_normal((30, 48)) * RNG.permutation(np.geomspace(0.1, 10, 48))).astype(np.float32)
    model = tied(table)
    quantize_blocks(model, bits=8, block=16, hessian={"rows": table.T.astype(float) @ table}, accuracy_level=0)
    assert types(model).count("Mul") == 2
    inverse = model.graph.initializers["table_rows_int8_16_inverse_factors"].const_value.numpy()
    smoothed = round_to_blocks(table / inverse, bits=8, block=16, symmetric=True, search=False)
    expected = unpack(smoothed, 8, 16, 48) * inverse
    wanted = np.array([3, 0, 29])
    rows, logits = run(model, level, ids=wanted)
    # one value in eight bits may be rounded the other way: the factors come back with the rounding of 1 / (1 / x)
    step = np.abs(smoothed.scale).max(axis=1)[wanted, None] * inverse
    assert (np.abs(rows - expected[wanted]) <= 1.01 * step).all()
    assert (np.abs(rows - expected[wanted]) > 1e-6).mean() < 0.01
    np.testing.assert_allclose(logits, rows @ expected.T, rtol=0, atol=1e-2 * np.abs(logits).max())


def test_second_moments(tmp_path: Path) -> None:
    table = RNG.standard_normal((30, 64)).astype(np.float32)
    model = tied(table)
    ir.save(model, tmp_path / "a.onnx")
    feeds = [{"ids": np.array([1, 2])}, {"ids": np.array([29])}]
    (found,) = second_moments(tmp_path / "a.onnx", ["rows"], feeds).values()
    seen = table[[1, 2, 29]].astype(float)
    np.testing.assert_allclose(found, seen.T @ seen / 3, atol=1e-6, rtol=0)
    with pytest.raises(QuantizeError, match="there is no calibration data"):
        second_moments(tmp_path / "a.onnx", ["rows"], [])
    with pytest.raises(QuantizeError, match="the graph 'g' computes no value 'column'"):
        second_moments(tmp_path / "a.onnx", ["column"], feeds)
    table[2, 3] = np.nan
    ir.save(tied(table), tmp_path / "b.onnx")
    with pytest.raises(QuantizeError, match="the value 'rows' is not finite on the calibration data"):
        second_moments(tmp_path / "b.onnx", ["rows"], feeds)


# ------------------------------------------------ whole models


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("opset", [24, 25])
def test_a_tied_decoder_is_verified(make_model: Any, tmp_path: Path, opset: int, bits: Any) -> None:
    """The ops between the quantized ones stay exact, at every level of optimization; the table is stored once."""
    (graph,) = graphs_of(
        make_model(
            kind="decoder",
            activation="swiglu",
            norm="rms",
            positions="rotary",
            tie_embeddings=True,
            d_model=48,
            nhead=4,
            vocab_size=6000,  # the exporter folds the Transpose of a small table
        )
    )
    model = to_onnx(graph, opset=opset)
    done = quantize_blocks(model, bits=bits, block=16)
    tables = [weight for weight in done if weight.op == "embedding"]
    assert len(tables) == 1
    assert sum(weight.name == tables[0].name for weight in done) == 2
    assert sum(held.const_value.size >= 6000 * 48 * bits // 8 for held in model.graph.initializers.values()) == 1
    path = tmp_path / "blocks.onnx"
    ir.save(model, path)
    report = verify(graph, path, cases(graph), precision="int8")
    assert report.passed, report.first_fault
    assert {op.weights for op in report.ops if op.is_layer} <= {"identical", "quantized"}
    assert all(output.figures.max_abs > 0 for output in report.outputs)


def test_the_keywords_are_the_fields_of_the_options() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(BlockOptions)}
    assert fields == BlockKeywords.__annotations__
