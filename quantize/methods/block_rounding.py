"""A matrix rounded to 4 or 8 bits in blocks along its rows, packed as onnxruntime's block kernels read it.

A block has a scale and, unless symmetric, a zero point: weight ≈ (value - zero) · scale, with the zero point
2^(bits - 1) where none is stored. Values are packed along the row, the earlier in the lower bits, and so are zero
points (com.microsoft MatMulNBits and GatherBlockQuantized in onnxruntime's ContribOperators.md).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .rounding import decibels

Bits = Literal[4, 8]
Float = npt.NDArray[np.float32]

_CHUNK = 1 << 20
"""Elements rounded at a time, so that the search needs little memory beside the weight."""

_SYMMETRIC_STEPS = np.linspace(0.75, 1.2, 16)
"""Where the largest value of a symmetric block may come to lie, as a fraction of the half range."""

_DAMPING = 0.01
"""Share of the mean second moment that is added to each, as in the paper."""

_RANGES = np.linspace(0.7, 1.05, 12)
"""Fractions of an asymmetric block's range that the integers may span."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """A rounded matrix of N rows and K columns.

    Attributes:
        packed: uint8, [N, ceil(K / block) · block · bits / 8].
        scale: [N, ceil(K / block)]: float16 where that represents every scale well, else float32.
        zero: uint8, [N, ceil(ceil(K / block) · bits / 8)], packed; None if symmetric.
        remainder: What to add to every entry of a block, like `scale`; None for nothing.
        unit: [N, 1]; where there is one, `scale` is uint8, in units of this, and `remainder` int8, in sixteenths of the
            block's scale.
        snr_db: Signal-to-noise ratio of what was rounded, in dB.
    """

    packed: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float16] | Float | npt.NDArray[np.uint8]
    zero: npt.NDArray[np.uint8] | None
    remainder: npt.NDArray[np.float16] | Float | npt.NDArray[np.int8] | None = None
    unit: npt.NDArray[np.float16] | Float | None = None
    snr_db: float


def round_to_blocks(
    weight_NK: Float,
    *,
    bits: Bits,
    block: int,
    symmetric: bool,
    search: bool,
    moments_KK: npt.NDArray[np.float64] | None = None,
    factors_K: Float | None = None,
) -> Blocks:
    """Round a matrix.

    Args:
        weight_NK: Float32, finite; blocks run along K, the last of a row being filled up with zeros.
        bits: 4 or 8.
        block: Entries that share a scale.
        symmetric: Whether the zero point is 2^(bits - 1) in every block.
        search: Whether each block's scale and zero point are those of the least squared error among a few clipped
            ranges, the scale then fitted by least squares, rather than those of the whole range (round to nearest).
        moments_KK: Mean outer product of the inputs that the rows are multiplied by: each column's error is then made
            up for in the columns after it, so that the products change least (GPTQ, Frantar et al. 2023,
            arXiv:2210.17323, algorithm 1).
        factors_K: What to multiply the columns by first; the moments are those of inputs that were divided by it.

    Returns:
        The packed matrix.
    """
    rows, columns = weight_NK.shape
    blocks = -(-columns // block)
    packed = np.empty((rows, blocks * block * bits // 8), np.uint8)
    scale = np.empty((rows, blocks), np.float32)
    zero = np.empty((rows, -(-blocks * bits // 8)), np.uint8)
    signal = noise = 0.0
    step = max(1, _CHUNK // (blocks * block))
    carry_KK = None if moments_KK is None else _carry(moments_KK, blocks * block)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        # Filled up with zeros, which are exact in any block.
        exact_nK = np.zeros((part.stop - start, blocks * block), np.float32)
        exact_nK[:, :columns] = weight_NK[part] if factors_K is None else weight_NK[part] * factors_K
        x = exact_nK.reshape(-1, block)
        # Without moments blocks are independent, and all are rounded at once; with them an error
        # goes on to later columns.
        if carry_KK is None:
            scale_b1, zero_b1 = _fit(x, bits, symmetric, search)
            values = _quantize(x, scale_b1, zero_b1, bits)
        else:
            values, scale_b1, zero_b1 = _compensate(exact_nK, carry_KK, bits, block, symmetric, search)
        signal += np.square(x).sum(dtype=np.float64)
        noise += np.square(x - (values - zero_b1) * scale_b1).sum(dtype=np.float64)
        packed[part] = pack(values.reshape(-1, blocks * block), bits)
        scale[part] = scale_b1.reshape(-1, blocks)
        zero[part] = pack(zero_b1.reshape(-1, blocks), bits)
    return Blocks(
        packed=packed,
        scale=as_half(scale, 0),
        zero=None if symmetric else zero,
        snr_db=decibels(signal, noise),
    )


def _fit(x: Float, bits: Bits, symmetric: bool, search: bool) -> tuple[Float, Float]:
    """Choose scale and zero point of each block of x [b, block], both [b, 1]."""
    candidates = _symmetric(x, bits) if symmetric else _asymmetric(x, bits)
    # The whole range comes first, and is all that there is without a search.
    whole = next(candidates)
    scale, zero = (array.copy() for array in whole)
    if search:
        least = np.full(scale.shape, np.inf, np.float32)
        for guess, guessed_zero in itertools.chain([whole], candidates):
            levels = _quantize(x, guess, guessed_zero, bits) - guessed_zero
            # With the levels fixed, the best scale is Σ levels · x / Σ levels² (least squares).
            power = np.square(levels).sum(axis=1, keepdims=True)
            fitted = np.divide((levels * x).sum(axis=1, keepdims=True), power, out=guess.copy(), where=power > 0)
            error = np.square(x - levels * fitted).sum(axis=1, keepdims=True)
            # A scale of 0 could not be divided by when the values are rounded.
            better = (error < least) & (fitted != 0)
            for best, found in ((least, error), (scale, fitted), (zero, guessed_zero)):
                best[better] = found[better]
    # Scales are stored as float16 where it keeps 8 bits of them. Rounded here already, so that the
    # values are rounded by the scale that they will be multiplied by.
    half = to_fp16(scale).astype(np.float32)
    # A scale that float16 has not is infinite there.
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(half - scale) <= np.abs(scale) / 256, half, scale), zero


def _carry(moments_KK: npt.NDArray[np.float64], columns: int) -> Float:
    """Upper Cholesky factor of the inverse of the moments: how a column's error is carried to those after it."""
    known = len(moments_KK)
    padded = np.eye(columns) * (
        moments_KK.trace() / known or 1
    )  # what fills up the last block is multiplied by nothing
    padded[:known, :known] = moments_KK
    # Inputs that always go together make the matrix singular: damped, it has an inverse.
    padded[np.diag_indices(columns)] += _DAMPING * padded.trace() / columns
    # U with UᵀU = H⁻¹
    return np.linalg.cholesky(np.linalg.inv(padded)).T.astype(np.float32)


def _compensate(
    exact_nK: Float, carry_KK: Float, bits: Bits, block: int, symmetric: bool, search: bool
) -> tuple[Float, Float, Float]:
    """Round rows column after column; gives the values [b, block], scales and zero points [b, 1]."""
    rest = exact_nK.copy()
    values = np.empty_like(rest)
    scales, zeros = (np.empty((len(rest), rest.shape[1] // block), np.float32) for _ in range(2))
    for index, start in enumerate(range(0, rest.shape[1], block)):
        end = start + block
        # The block's scale is chosen when the errors of all blocks before it have reached it.
        scale, zero = _fit(rest[:, start:end], bits, symmetric, search)
        errors = np.empty((len(rest), block), np.float32)
        for column in range(start, end):
            values[:, column] = _quantize(rest[:, [column]], scale, zero, bits)[:, 0]
            rounded = (values[:, column] - zero[:, 0]) * scale[:, 0]
            error = (rest[:, column] - rounded) / carry_KK[column, column]
            # Within the block the error goes on at once, to later blocks when this one is done: one
            # large product for a block's worth of narrow ones.
            rest[:, column:end] -= np.outer(error, carry_KK[column, column:end])
            errors[:, column - start] = error
        rest[:, end:] -= errors @ carry_KK[start:end, end:]
        scales[:, [index]], zeros[:, [index]] = scale, zero
    return values.reshape(-1, block), scales.reshape(-1, 1), zeros.reshape(-1, 1)


def _symmetric(x: Float, bits: Bits) -> Iterator[tuple[Float, Float]]:
    """Scales of the whole range, and then of ranges in which the extreme value may lie on either side of zero."""
    half = 2 ** (bits - 1)
    zero = np.full((len(x), 1), half, np.float32)
    # (b, 1): with its sign.
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    yield _positive(np.abs(extreme) / np.float32(half - 1)), zero
    for step in _SYMMETRIC_STEPS:
        # Integers about the middle reach -half, but only half - 1. The extreme value is tried on either
        # side, for which the scale may have to be negative.
        for sign in (-1, 1):
            yield _positive(extreme / np.float32(sign * step * half)), zero


def _asymmetric(x: Float, bits: Bits) -> Iterator[tuple[Float, Float]]:
    """Scales and zero points of the whole range, and then of parts of it, moved by up to one step."""
    top = np.float32(2**bits - 1)
    # 0 is within the range, so that the zero point is one of its integers.
    low, high = np.minimum(x.min(axis=1, keepdims=True), 0), np.maximum(x.max(axis=1, keepdims=True), 0)
    scale = _positive((high - low) / top)
    yield scale, np.rint(-low / scale).clip(0, top)
    for part in _RANGES:
        scale = _positive((high - low) * np.float32(part) / top)
        # A part of the range is taken about its middle; rounded, the zero point may be better one
        # step to either side.
        middle = np.rint(top / 2 - (low + high) / 2 / scale)
        for shift in (-1, 0, 1):
            yield scale, (middle + np.float32(shift)).clip(0, top)


def _positive(scale: npt.NDArray[np.floating[Any]]) -> Float:
    """Scales, 1 for blocks of nothing but zeros."""
    return np.where(np.abs(scale) > 0, scale, np.float32(1)).astype(np.float32)


def _quantize(x: Float, scale: Float, zero: Float, bits: Bits) -> Float:
    return np.rint(x / scale + zero).clip(0, 2**bits - 1)


def pack(values: Float, bits: Bits) -> npt.NDArray[np.uint8]:
    """Pack integers [n, m] along the row."""
    integers: npt.NDArray[np.uint8] = values.astype(np.uint8)
    if bits == 8:
        return integers
    integers = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
    return np.bitwise_or(integers[:, ::2], integers[:, 1::2] << 4, dtype=np.uint8)


def as_half(array: Float, error: Float | np.floating[Any] | float) -> npt.NDArray[np.float16] | Float:
    """Give an array in float16 if that is as near as `error` everywhere."""
    half = to_fp16(array)
    # What float16 has not is infinite there.
    with np.errstate(invalid="ignore"):
        return half if (np.abs(half.astype(np.float32) - array) <= error).all() else array


def to_fp16(scale: Float) -> npt.NDArray[np.float16]:
    """Round to float16; what it has not becomes infinite."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16)
