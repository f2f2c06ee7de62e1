"""Weights that were rounded before: found and kept exactly; and the inputs that are multiplied apart."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.support.block_graphs import Array, constant, model_of, run, tied, types, unpack, value
from tfm.export import graphs_of, to_onnx, verify
from tfm.export.verify.optimized import LEVELS
from tfm.export.verify.samples import cases
from tfm.quantize import quantize_blocks, quantize_to_blocks
from tfm.quantize.methods.block_rounding import Blocks
from tfm.quantize.methods.grid import find_grid
from tfm.quantize.methods.hessian import second_moments
from tfm.quantize.methods.outliers import choose_outliers, outliers_of

RNG = np.random.default_rng(0)

# Products in float32 (accuracy_level 0) of 96 inputs about 1, tables by themselves included: at most 6.5e-5 seen.
ATOL = 4e-4
# Rows of a table, a product and a sum each: 1.2e-7 seen.
ROWS_ATOL = 2e-6


def rounded(shape: tuple[int, int], kind: str) -> Array:
    """A random matrix, rounded as GGUF files are, by their own package."""
    type_ = gguf.GGMLQuantizationType[kind]
    weight = RNG.standard_normal(shape).astype(np.float32)
    return gguf.quants.dequantize(gguf.quants.quantize(weight, type_), type_)


def represented(blocks: Blocks, bits: int, columns: int) -> Array:
    scale = np.asarray(blocks.scale, float) * (1 if blocks.unit is None else np.asarray(blocks.unit, float))
    found = unpack(dataclasses.replace(blocks, scale=scale), bits, 32, columns)
    if blocks.remainder is None:
        return found
    remainder = np.asarray(blocks.remainder, float) * (1 if blocks.unit is None else scale / 16)
    return found + np.repeat(remainder, 32, axis=1)[:, :columns]


# ------------------------------------------------ finding


@pytest.mark.parametrize(("kind", "bits", "has_remainder"), [("Q4_0", 4, False), ("Q4_1", 4, True), ("Q8_0", 8, False)])
@pytest.mark.parametrize("size", [1, 1e-4, 300])
def test_what_a_gguf_file_holds_is_found(kind: str, bits: int, has_remainder: bool, size: float) -> None:
    weight = RNG.standard_normal((70, 96)).astype(np.float32) * np.float32(size)
    weight[3, :32], weight[4] = 0, 0
    type_ = gguf.GGMLQuantizationType[kind]
    weight = gguf.quants.dequantize(gguf.quants.quantize(weight, type_), type_)
    found_bits, blocks = find_grid(weight, 8)
    assert found_bits == bits
    assert blocks is not None
    assert (blocks.remainder is not None) == has_remainder
    assert blocks.scale.dtype == np.float16
    error = np.abs(represented(blocks, bits, 96) - weight)
    if has_remainder:  # at most half a step, which float16 rounds by 2^-11 of itself at most
        assert (error <= np.repeat(blocks.scale.astype(float), 32, axis=1) * 2.0**-12 * 1.001).all()
    else:
        np.testing.assert_array_equal(error, 0)
        assert blocks.snr_db == np.inf


@pytest.mark.parametrize("size", [1, 1e-4, 1e8])
def test_scales_and_remainders_in_8_bits(size: float) -> None:
    weight = rounded((70, 96), "Q4_1") * np.float32(size)
    exact, (bits, blocks) = find_grid(weight, 8)[1], find_grid(weight, 4)
    assert exact is not None
    assert blocks is not None
    assert (bits, blocks.scale.dtype, blocks.zero, blocks.unit is None) == (4, np.uint8, None, False)
    np.testing.assert_array_equal(blocks.packed, exact.packed)
    assert blocks.scale.max(axis=1).min() >= 254  # each row's largest, but for the unit's own rounding
    found, steps = represented(blocks, 4, 96), np.repeat(exact.scale.astype(float), 32, axis=1)
    # a 32nd of a step for the remainder, another where the largest is cut off; the scale's half unit, times 8 at most
    bound = steps / 16 + 8 * 0.5 * np.asarray(blocks.unit, float)
    assert (np.abs(found - weight) <= bound).all()
    signal, nmse = np.square(weight.astype(float)).sum(), np.square(found - weight).sum()
    assert blocks.snr_db == pytest.approx(10 * np.log10(signal / nmse), abs=0.01)
    assert blocks.snr_db > 42  # 45.2 seen


def test_the_largest_remainder_of_8_bits_is_cut_off() -> None:
    """Blocks that begin at zero, in every second row: their offset is 8 steps, 128 sixteenths."""
    type_ = gguf.GGMLQuantizationType.Q4_1
    weight = RNG.standard_normal((40, 96)).astype(np.float32)
    weight[::2] = np.abs(weight[::2])
    weight[::2, ::32] = 0
    weight = gguf.quants.dequantize(gguf.quants.quantize(weight, type_), type_)
    bits, blocks = find_grid(weight, 4)
    assert blocks is not None
    assert blocks.unit is not None
    assert bits == 4
    bound = np.repeat(blocks.scale * np.asarray(blocks.unit, float), 32, axis=1) / 16 + 8 * np.asarray(blocks.unit)
    assert (np.abs(represented(blocks, 4, 96) - weight) <= bound).all()


def test_remainders_that_8_bits_lack_are_kept_in_16() -> None:
    """A block far from zero: its offset is more than 8 steps from where the kernel's zero points can be."""
    weight = rounded((40, 96), "Q4_1")
    weight[7, 32:64] += 64
    bits, blocks = find_grid(weight, 4)
    assert blocks is not None
    assert (bits, blocks.unit) == (4, None)
    np.testing.assert_allclose(represented(blocks, 4, 96), weight, rtol=2e-4, atol=1e-6)


def test_eight_bits_are_not_found_where_four_are_asked_for() -> None:
    assert find_grid(rounded((70, 96), "Q8_0"), 4)[1] is None


def test_blocks_of_one_value_and_rows_that_end_in_a_block() -> None:
    weight = rounded((40, 96), "Q4_1")[:, :80]
    weight[0, :32], weight[1, :32], weight[2, :32] = 0.37, -0.37, 0
    bits, blocks = find_grid(weight, 8)
    assert blocks is not None
    assert bits == 4
    np.testing.assert_allclose(represented(blocks, 4, 80), weight, rtol=0, atol=3e-4)
    np.testing.assert_array_equal(represented(blocks, 4, 80)[1:3, :32], weight[1:3, :32])


def test_scales_that_float16_lacks() -> None:
    for factor in (np.float32(1e8), np.float32(1 / 3)):
        weight = rounded((40, 96), "Q4_1") * factor
        bits, blocks = find_grid(weight, 8)
        assert blocks is not None
        assert bits == 4
        assert blocks.scale.dtype == np.float32
        assert blocks.snr_db > 80


@pytest.mark.parametrize("spoil", ["one value", "a last bit", "none"])
def test_one_value_off_the_grid_is_enough(spoil: str) -> None:
    weight = rounded((3000, 96), "Q4_1")
    step = np.diff(np.sort(weight[-1, -32:])).max()
    weight[-1, -1] += {"one value": step / 100, "a last bit": np.spacing(weight[-1, -1]), "none": 0}[spoil]
    assert (find_grid(weight, 8)[1] is None) == (spoil == "one value")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_weights_lie_on_no_grid(dtype: Any) -> None:
    weight = RNG.standard_normal((70, 96)).astype(dtype).astype(np.float32)
    assert find_grid(weight, 8)[1] is None


# ------------------------------------------------ graphs


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("columns", [96, 80])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_product_is_that_of_the_exact_weight(kind: str, columns: int, level: str) -> None:
    weight = rounded((14, 96), kind)[:, :columns].T.copy()
    bias = RNG.standard_normal(14).astype(np.float32)
    x, held, added = value("x", "B", "S", columns), constant("w", weight), constant("b", bias)
    matmul = ir.node("MatMul", [x, held], metadata_props={"op": "linear"})
    add = ir.node("Add", [matmul.outputs[0], added], metadata_props={"op": "linear"}, name="sum")
    model = model_of([x], [matmul, add], {"y": add.outputs[0]}, held, added)
    (done,) = quantize_blocks(model, accuracy_level=0)
    if (kind, columns) == ("Q8_0", 80):  # the largest of the last block may be cut off
        assert done.method.startswith(("8 bits", "the checkpoint's own 8 bits"))
        return
    assert done.method == f"the checkpoint's own {kind[1]} bits in blocks of 32"
    assert {node.metadata_props["op"] for node in model.graph} == {"linear"}
    assert "w" not in model.graph.initializers
    array = RNG.standard_normal((2, 3, columns)).astype(np.float32)
    found = run(model, level, x=array)[0]
    np.testing.assert_allclose(found, array.astype(float) @ weight + bias, rtol=0, atol=ATOL)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_tied_table_is_kept_for_both(kind: str, level: str) -> None:
    table = rounded((30, 96), kind)
    model = tied(table)
    done = quantize_blocks(model, accuracy_level=0)
    assert [weight.op for weight in done] == ["embedding", "matmul"]
    large = [name for name, held in model.graph.initializers.items() if held.const_value.nbytes >= 30 * 96 // 2]
    assert large == ["table_rows_grid"]
    wanted = np.array([[3, 0], [29, 3]])
    model.graph.inputs[0].shape = ir.Shape(["B", "S"])
    rows, logits = run(model, level, ids=wanted)
    np.testing.assert_allclose(rows, table[wanted], rtol=0, atol=ROWS_ATOL)
    np.testing.assert_allclose(logits, table[wanted].astype(float) @ table.T, rtol=0, atol=ATOL)


def test_a_grid_of_8_bits_is_not_used_where_4_are_asked_for() -> None:
    model = tied(rounded((30, 96), "Q8_0"))
    look, _, head = model.graph
    first, second = (quantize_to_blocks(model.graph, node, bits=bits) for node, bits in ((look, 8), (head, 4)))
    assert first is not None
    assert second is not None
    assert (first.method, second.method) == ("the checkpoint's own 8 bits in blocks of 32", "4 bits in blocks of 32")


@pytest.mark.parametrize("accuracy_level", [0, 4])
@pytest.mark.parametrize("level", LEVELS)
def test_a_table_in_4_bits_is_looked_up_and_multiplied(level: str, accuracy_level: int) -> None:
    table = rounded((30, 96), "Q4_1")
    blocks = find_grid(table, 4)[1]
    assert blocks is not None
    assert blocks.unit is not None
    expected = represented(blocks, 4, 96)
    model = tied(table)
    quantize_blocks(model, bits=4, accuracy_level=accuracy_level)
    rows, logits = run(model, level, ids=np.array([3, 0, 29, 3]))
    np.testing.assert_allclose(rows, expected[[3, 0, 29, 3]], rtol=0, atol=ROWS_ATOL)
    exact = expected[[3, 0, 29, 3]] @ expected.T
    # inputs rounded to 8 bits in blocks: 0.4 % of the largest, which averages out; 0.3 % of the largest product seen
    atol = ATOL if accuracy_level == 0 else 0.02 * np.abs(exact).max()
    np.testing.assert_allclose(logits, exact, rtol=0, atol=atol)


def test_a_grid_may_be_given_up() -> None:
    weight = rounded((14, 96), "Q4_1").T.copy()
    for keep, expected in ((True, "the checkpoint's own 4 bits in blocks of 32"), (False, "8 bits in blocks of 64")):
        x, held = value("x", "B", 96), constant("w", weight)
        matmul = ir.node("MatMul", [x, held])
        model = model_of([x], [matmul], {"y": matmul.outputs[0]}, held)
        done = quantize_to_blocks(model.graph, matmul, keep_grid=keep)
        assert done is not None
        assert done.method == expected


# ------------------------------------------------ outliers


def product(kind: str, **options: Any) -> tuple[ir.Model, Array, Array]:
    """A quantized product with a bias, its inputs, of which 5 and 40 are a hundred times the others, and its result."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((200, 96)).astype(np.float32)
    inputs[:, [5, 40]] *= 100
    weight = rounded((48, 96), kind).T.copy() if kind else rng.standard_normal((96, 48)).astype(np.float32)
    bias = rng.standard_normal(48).astype(np.float32)
    x, held, added = value("x", "B", 96), constant("w", weight), constant("b", bias)
    matmul = ir.node("MatMul", [x, held], metadata_props={"op": "linear"})
    add = ir.node("Add", [matmul.outputs[0], added], metadata_props={"op": "linear"})
    model = model_of([x], [matmul, add], {"y": add.outputs[0]}, held, added)
    hessian = {"x": inputs.T.astype(float) @ inputs / len(inputs)}
    (done,) = quantize_blocks(model, **{"block": 32, "hessian": hessian, **options})
    assert {node.metadata_props["op"] for node in model.graph} == {"linear"}
    assert ("Gather" in types(model)) == (" outliers apart" in done.method)
    return model, inputs, inputs.astype(float) @ weight + bias


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("smoothing", [0, 0.5])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", ""])
def test_outliers_are_multiplied_apart(kind: str, smoothing: float, level: str) -> None:
    noises = []
    for outliers in (0, 2 / 96):
        model, inputs, expected = product(kind, outliers=outliers, smoothing=smoothing)
        noises.append(np.square(run(model, level, x=inputs)[0] - expected).mean())
    # Without constant scales the kernel rounds no inputs, so there is nothing to gain. Seen, without outliers: 3.1 and
    # more, 0.057 for smoothed weights on no grid; with them at most 0.0040 on a grid, 0.027 on none.
    assert level == "disabled" or noises[0] > 0.05
    assert noises[1] < (0.006 if kind else 0.035)


def test_only_where_a_grid_leaves_nothing_else_are_outliers_the_default() -> None:
    for kind, options, expected in (
        ("Q4_1", {}, True),
        ("Q4_1", {"accuracy_level": 0}, False),
        ("Q4_1", {"hessian": None}, False),
        ("Q4_1", {"keep_grid": False}, False),
        ("", {}, False),
    ):
        assert ("Gather" in types(product(kind, **options)[0])) == expected


def test_the_choice_of_outliers_is_greedy_by_the_noise_of_blocks() -> None:
    def bound(inputs: Array, weights: Array) -> float:
        return sum(inputs[i : i + 16].max() * weights[i : i + 16].sum() for i in range(0, len(inputs), 16))

    power, weights = RNG.exponential(size=40) ** 3, RNG.exponential(size=40)
    rest, expected = power.copy(), []
    for _ in range(7):
        trials = [bound(np.where(np.arange(40) == i, 0, rest), weights) for i in range(40)]
        expected.append(int(np.argmin(trials)))
        rest[expected[-1]] = 0
    assert choose_outliers(power, weights, 16, 7) == sorted(expected)
    assert choose_outliers(np.ones(40), weights, 16, 7) == []
    assert choose_outliers(power, np.zeros(40), 16, 7) == []


def test_smoothed_inputs_are_chosen_by_what_smoothing_leaves_of_them() -> None:
    weight, factors = RNG.standard_normal((20, 96)).astype(np.float32), RNG.exponential(size=96).astype(np.float32)
    array = RNG.standard_normal((300, 96)) * RNG.exponential(size=96) ** 2
    found = outliers_of(weight, factors, np.square(array).sum(0), 32, 5)
    expected = outliers_of(weight * factors, None, np.square(array / factors).sum(0), 32, 5)
    assert found is not None
    assert expected is not None
    assert found.inputs == expected.inputs
    np.testing.assert_array_equal(found.weight_oN, expected.weight_oN)


def test_products_of_one_weight_may_have_other_outliers() -> None:
    weight = rounded((16, 96), "Q4_1").T.copy()
    x, y, held = value("x", "B", 96), value("z", "B", 96), constant("w", weight)
    nodes = [ir.node("MatMul", [x, held]), ir.node("MatMul", [y, held])]
    model = model_of([x, y], nodes, {"a": nodes[0].outputs[0], "b": nodes[1].outputs[0]}, held)
    array = RNG.standard_normal((20, 96)).astype(np.float32) * RNG.permutation(np.geomspace(0.1, 10, 96))
    array = array.astype(np.float32)
    hessian = {name: array.T.astype(float) @ array / 20 for name in ("x", "z")}
    for node, count in zip(nodes, (3, 9), strict=True):
        quantize_to_blocks(model.graph, node, hessian=hessian, outliers=count / 96)
    chosen = [node.inputs[1].const_value.size for node in model.graph if node.op_type == "Gather"]
    assert chosen == [3, 9]
    for found in run(model, x=array, z=array):
        np.testing.assert_allclose(found, array.astype(float) @ weight, rtol=0, atol=0.02 * np.abs(found).max())


# ------------------------------------------------ whole models


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_tied_decoder_of_a_gguf_file_is_verified(make_model: Any, tmp_path: Path, calibrated: bool) -> None:
    """Every op of it, at every level of optimization; with float32 products it is the model itself."""
    model = make_model(
        kind="decoder",
        activation="swiglu",
        norm="rms",
        positions="rotary",
        tie_embeddings=True,
        d_model=64,
        dim_feedforward=96,
        nhead=4,
        vocab_size=6000,  # the exporter folds the Transpose of a small table
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                type_ = gguf.GGMLQuantizationType["Q8_0" if len(parameter) == 6000 else "Q4_1"]
                exact = gguf.quants.dequantize(gguf.quants.quantize(parameter.numpy(), type_), type_)
                parameter.copy_(torch.from_numpy(exact))
    (graph,) = graphs_of(model)
    onnx_model, path = to_onnx(graph), tmp_path / "grid.onnx"
    ir.save(onnx_model, path)
    options: dict[str, Any] = {"accuracy_level": 0}
    if calibrated:
        names = {str(n.inputs[0].name) for n in onnx_model.graph if n.op_type == "MatMul" and n.inputs[0] is not None}
        inputs = [str(value.name) for value in onnx_model.graph.inputs]
        feeds = [dict(zip(inputs, (x.numpy() for x in case), strict=True)) for case in cases(graph)]
        options = {"hessian": second_moments(path, names, feeds)}
    done = quantize_blocks(onnx_model, **options)
    assert all(weight.method.startswith("the checkpoint's own ") for weight in done)
    ir.save(onnx_model, path)
    report = verify(graph, path, cases(graph), precision="int8")
    assert report.passed, report.first_fault
    assert {op.weights for op in report.ops if op.is_layer} <= {"identical", "quantized"}
    worst = max(output.figures.max_abs for output in report.outputs)
    assert worst > 0.1 if calibrated else worst < 1e-3  # seen: 0.97 and 1e-4
