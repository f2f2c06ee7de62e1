"""Weights that lie on a grid already: found from their float32 values alone, and kept exactly.

A checkpoint that was rounded once, such as a GGUF file, holds in each block of inputs only values m + d·q with small
integers q. Rounding them again, to other blocks or other offsets, loses what nobody has to lose. As they are, they also
take fewer bits than the 8 that a fresh rounding needs to come near.

Kernels multiply by d·(q - z) with an integer zero point z. What is left of m, the remainder m + d·z, is the
same for all inputs of a block, and is multiplied by their sum.

Shapes: N outputs, K inputs, b blocks.
"""

from collections.abc import Callable

import numpy as np

from .block_rounding import Bits, Blocks, Float, as_half, decibels, pack, to_half

GRID_BLOCK = 32
"""Inputs in a block: as in GGUF's Q4_0, Q4_1 and Q8_0."""

_CHUNK = 1 << 18
"""Elements looked at in one go; most matrices that lie on no grid are known by the first."""

_SLACK = np.float32(2.0**-20)
"""How far a value may be from its grid, of the block's largest: a few roundings to float32, at most 0.25 of it seen."""

_OF_A_STEP = np.float32(2.0**-10)
"""What a remainder may lose in float16, of the scale; one of half a scale loses a quarter of that."""

_Grid = tuple[Float, Float, Float, Float]
"""Integers [b, block], and scales, zero points and remainders [b, 1]."""


def find_grid(weight_NK: Float, bits: Bits) -> tuple[Bits, Blocks | None]:
    """Read off the grid that a matrix lies on.

    Args:
        weight_NK: Float32, finite; blocks of 32 run along K, the last of a row being filled up with zeros.
        bits: At most so many.

    Returns:
        The bits, and the matrix: in 4 bits where every block has at most 16 evenly spaced values, with a zero point
        and a remainder each; else, of 8, where every block holds multiples of a scale, the largest 127; None where
        neither holds.
    """
    found = _read(weight_NK, 4, _evenly_spaced)
    return (4, found) if found is not None or bits == 4 else (8, _read(weight_NK, 8, _multiples))


def _read(weight_NK: Float, bits: Bits, read: Callable[[Float], _Grid | None]) -> Blocks | None:
    rows, columns = weight_NK.shape
    blocks = -(-columns // GRID_BLOCK)
    filling = ((0, 0), (0, blocks * GRID_BLOCK - columns))
    packed, scales, zeros, remainders = [], [], [], []
    signal = noise = 0.0
    step = max(1, _CHUNK // (blocks * GRID_BLOCK))
    for start in range(0, rows, step):
        x = np.pad(weight_NK[start : start + step], filling, mode="edge").reshape(-1, GRID_BLOCK)
        grid = read(x)
        if grid is None:
            return None
        values, scale, zero, remainder = grid
        remainder = _half_where_near(remainder, scale * _OF_A_STEP)
        signal += np.square(x).sum(dtype=np.float64)
        noise += np.square(x - (values - zero) * scale - remainder).sum(dtype=np.float64)
        packed.append(pack(values.reshape(-1, blocks * GRID_BLOCK), bits))
        zeros.append(pack(zero.reshape(-1, blocks), bits))
        scales.append(scale.reshape(-1, blocks))
        remainders.append(remainder.reshape(-1, blocks))
    remainder = np.concatenate(remainders)
    return Blocks(
        packed=np.concatenate(packed),
        scale=as_half(np.concatenate(scales), 0),
        zero=np.concatenate(zeros) if bits == 4 else None,
        remainder=as_half(remainder, 0) if remainder.any() else None,
        snr_db=decibels(signal, noise),
    )


def _evenly_spaced(x: Float) -> _Grid | None:
    """Read blocks [b, 32] of at most 16 values at equal distances."""
    low, slack = x.min(axis=1, keepdims=True), np.abs(x).max(axis=1, keepdims=True) * _SLACK
    span = x.max(axis=1, keepdims=True) - low
    span = np.where(span > 0, span, 15 * np.abs(low))
    span[span == 0] = 15
    values, scale = np.empty_like(x), np.empty_like(span)
    left = np.arange(len(x))
    for steps in range(15, 0, -1):
        guess = _half_where_near(span[left] / np.float32(steps), slack[left] / np.float32(15))
        found = np.rint((x[left] - low[left]) / guess)
        fits = (np.abs(x[left] - low[left] - found * guess) <= slack[left]).all(axis=1)
        values[left[fits]], scale[left[fits]] = found[fits], guess[fits]
        left = left[~fits]
        if not len(left):
            break
    else:
        return None
    zero = np.rint(-low / scale).clip(0, 15)
    remainder = low + zero * scale
    return values, scale, zero, np.where(np.abs(remainder) <= slack, np.float32(0), remainder)


def _multiples(x: Float) -> _Grid | None:
    """Read blocks [b, 32] of multiples of a scale, 127 being the largest."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    slack = largest * _SLACK
    scale = _half_where_near(largest / np.float32(127), slack / np.float32(127))
    scale[scale == 0] = 1
    values = np.rint(x / scale)
    if (np.abs(x - values * scale) > slack).any():
        return None
    return values + 128, scale, np.full_like(scale, 128), np.zeros_like(scale)


def _half_where_near(array: Float, error: Float) -> Float:
    """Numbers as float16 has them, where they are as near as `error` to that."""
    half = to_half(array).astype(np.float32)
    with np.errstate(invalid="ignore"):  # what float16 has not is infinite there
        return np.where(np.abs(half - array) <= error, half, array)
