"""Blocks of 4 bits with a fitted scale and offset: near a grid, where there is none, at extremes, and in a graph."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.block_graphs import constant, model_of, run, types, unpack, value
from tfm.errors import QuantizeError
from tfm.export.verify.optimized import LEVELS
from tfm.quantize import BlockOptions, quantize_blocks
from tfm.quantize.methods.block_fit import fit_blocks
from tfm.quantize.methods.block_rounding import Blocks, round_to_blocks

Array = np.ndarray


def decoded(blocks: Blocks, columns: int) -> Array:
    """(q - 8) · scale + remainder, by the definition of each field."""
    packed = blocks.packed.astype(int)
    values = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1, 32)
    scale = blocks.scale.astype(float)
    remainder = blocks.remainder.astype(float)
    if blocks.unit is not None:
        scale = scale * blocks.unit.astype(float)
        remainder = remainder * scale / 16
    return ((values - 8) * scale[:, :, None] + remainder[:, :, None]).reshape(len(packed), -1)[:, :columns]


def decibels(weight: Array, found: Array, power_K: Array | None = None) -> float:
    power_K = np.ones(weight.shape[1]) if power_K is None else power_K
    noise = (np.square(found - weight.astype(float)) * power_K).sum()
    return float(10 * np.log10((np.square(weight.astype(float)) * power_K).sum() / noise))


def plain(weight: Array) -> Array:
    return unpack(round_to_blocks(weight, bits=4, block=32, symmetric=False, search=True), 4, 32, weight.shape[1])


def test_weights_that_were_moved_off_their_grid_fall_nearly_back_onto_it() -> None:
    """An eighth of a step: what is left is the move, 0.072 of a step, and not the 0.289 that rounding afresh loses."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.03, (64, 8, 1))
    offset = -scale * rng.uniform(4, 11, (64, 8, 1))
    values = rng.integers(0, 16, (64, 8, 32))
    values[:, :, :2] = 0, 15
    weight = (offset + scale * (values + rng.uniform(-0.125, 0.125, values.shape))).astype(np.float32).reshape(64, 256)
    blocks = fit_blocks(weight, None)
    assert blocks.unit is not None
    found = decibels(weight, decoded(blocks, 256))
    moved = decibels(weight, (offset + scale * values).reshape(64, 256))
    assert found > moved - 0.7  # of 8 bits for scales and offsets
    assert found > decibels(weight, plain(weight)) + 8
    assert blocks.snr_db == pytest.approx(found, abs=0.01)


def test_where_there_is_no_grid_it_is_nearer_than_zero_points_too() -> None:
    weight = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    assert decibels(weight, decoded(fit_blocks(weight, None), 256)) > decibels(weight, plain(weight)) + 0.2


def test_errors_count_by_the_power_of_the_inputs() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((64, 256)).astype(np.float32)
    power_K = np.exp(2 * rng.standard_normal(256))
    weighed, alike = (decoded(fit_blocks(weight, power), 256) for power in (power_K, None))
    assert decibels(weight, weighed, power_K) > decibels(weight, alike, power_K) + 3
    assert decibels(weight, weighed) < decibels(weight, alike)


@pytest.mark.parametrize("columns", [32, 50, 33])
def test_blocks_with_nothing_to_fit(columns: int) -> None:
    weight = np.zeros((6, columns), np.float32)
    weight[1] = 0.3
    weight[2] = -7e-4
    weight[3, ::2] = 1e-5
    weight[4] = np.linspace(0.5, 1.0, columns)  # all on one side of zero
    weight[5, 3] = 1000
    blocks = fit_blocks(weight, np.zeros(columns))
    found = decoded(blocks, columns)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], 0)
    step = np.maximum(np.ptp(weight, axis=1, keepdims=True) / 15, np.abs(weight).max(axis=1, keepdims=True) / 8)
    assert (np.abs(found - weight) <= step).all()


def test_scales_are_of_16_bits_where_8_are_too_coarse() -> None:
    """One block of a row a thousand times as large as the others: in its units of 1/255 theirs would be 0."""
    weight = np.random.default_rng(3).standard_normal((16, 256)).astype(np.float32)
    weight[:, :32] *= 1000
    blocks = fit_blocks(weight, None)
    assert blocks.unit is None
    assert blocks.scale.dtype == blocks.remainder.dtype == np.float16
    assert decibels(weight[:, 32:], decoded(blocks, 256)[:, 32:]) > 20


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("columns", [96, 81])
def test_the_graph_multiplies_by_what_was_fitted(columns: int, level: str) -> None:
    rng = np.random.default_rng(4)
    weight, power_K = rng.standard_normal((columns, 14)).astype(np.float32), rng.uniform(0.1, 2, columns)
    x, held = value("x", "B", columns), constant("w", weight)
    matmul = ir.node("MatMul", [x, held])
    model = model_of([x], [matmul], {"y": matmul.outputs[0]}, held)
    (done,) = quantize_blocks(model, bits=4, fitted=True, power=power_K, accuracy_level=0)
    assert "MatMulNBits" in types(model)
    blocks = fit_blocks(np.ascontiguousarray(weight.T), power_K)
    assert done.snr_db == blocks.snr_db
    array = rng.standard_normal((5, columns)).astype(np.float32)
    found, expected = run(model, level, x=array)[0], array @ decoded(blocks, columns).T
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{"bits": 8}, {"bits": 4, "block": 64}, {}], ids=str)
def test_other_blocks_cannot_be_fitted(options: dict[str, Any]) -> None:
    with pytest.raises(QuantizeError, match="cannot be fitted; choose 4 bits in blocks of 32"):
        BlockOptions(**options, fitted=True)
