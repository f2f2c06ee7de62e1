"""Weights that lie on a grid already: found from their float32 values alone, and kept exactly.

A checkpoint that was rounded once, such as a GGUF file, holds in each block of inputs only values m + d·q with small
integers q. Rounding them again, to other blocks or other offsets, loses what nobody has to lose. As they are, they also
take fewer bits than the 8 that a fresh rounding needs to come near.

Kernels multiply by d·(q - z) with an integer zero point z. What is left of m, the remainder m + d·z, is the
same for all inputs of a block, and is multiplied by their sum.

Shapes: N outputs, K inputs, b blocks.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .block_rounding import Bits, Blocks, Float, as_half, pack, to_fp16
from .rounding import decibels

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
        weight_NK: Float32, finite; blocks of 32 run along K, the last of a row being filled up with its last entry.
        bits: At most so many.

    Returns:
        The bits, and the matrix: in 4 bits where every block has at most 16 evenly spaced values, with a zero point
        and a remainder each; else, of 8, where every block holds multiples of a scale, the largest 127; None where
        neither holds. If 4 bits are the most and there are remainders, they and the scales are rounded to
        8 bits and zero points left out, where that is possible.
    """
    # 4 bits first: where they hold a matrix exactly, 8 would only be larger.
    found = _read(weight_NK, 4, _evenly_spaced)
    if found is None:
        return (4, None) if bits == 4 else (8, _read(weight_NK, 8, _multiples))
    # Whoever asks for 4 bits wants the smallest file; where 8 bits are allowed, float16 scales and
    # remainders keep more of the weight.
    if bits == 4 and found.remainder is not None:
        return 4, _read(weight_NK, 4, _evenly_spaced, compact=True) or found
    return 4, found


def _read(
    weight_NK: Float, bits: Bits, read: Callable[[Float], _Grid | None], *, compact: bool = False
) -> Blocks | None:
    rows, columns = weight_NK.shape
    blocks = -(-columns // GRID_BLOCK)
    filling = ((0, 0), (0, blocks * GRID_BLOCK - columns))
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    signal = nmse = 0.0
    step = max(1, _CHUNK // (blocks * GRID_BLOCK))
    for start in range(0, rows, step):
        # (n, K) → (n · blocks, 32). Filled up with the row's last entry, which lies on its grid.
        x = np.pad(weight_NK[start : start + step], filling, mode="edge").reshape(-1, GRID_BLOCK)
        grid = read(x)
        if grid is None:
            return None
        values, scale, zero, remainder = grid
        if compact:
            # x = (q - z) · s + r = (q - 8) · s + (r + (8 - z) · s): with the kernel's own zero
            # point 8, the offset has to hold what the zero points did.
            small = _compact(scale.reshape(-1, blocks), (remainder + (8 - zero) * scale).reshape(-1, blocks))
            if small is None:
                return None
            # What is stored, not what was found: the noise below is to be that of the graph.
            scale, zero = (small["unit"] * small["scale"]).reshape(-1, 1), np.full_like(zero, 8)
            remainder = small["remainder"].reshape(-1, 1) * scale / np.float32(16)
        else:
            remainder = _half_where_near(remainder, scale * _OF_A_STEP)
            small = {"scale": scale.reshape(-1, blocks), "remainder": remainder.reshape(-1, blocks)}
        signal += np.square(x).sum(dtype=np.float64)
        nmse += np.square(x - (values - zero) * scale - remainder).sum(dtype=np.float64)
        small["packed"] = pack(values.reshape(-1, blocks * GRID_BLOCK), bits)
        small["zero"] = pack(zero.reshape(-1, blocks), bits)
        for key, array in small.items():
            parts.setdefault(key, []).append(array)
    whole: dict[str, npt.NDArray[Any]] = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    if compact:
        whole |= {"scale": whole["scale"].astype(np.uint8), "remainder": whole["remainder"].astype(np.int8)}
    else:
        # With an error of 0: `_half_where_near` made float16 numbers of them where it could, and
        # one that is none keeps all in float32.
        whole |= {"scale": as_half(whole["scale"], 0), "remainder": as_half(whole["remainder"], 0)}
    return Blocks(
        packed=whole["packed"],
        scale=whole["scale"],
        zero=whole["zero"] if bits == 4 and not compact else None,
        remainder=whole["remainder"] if whole["remainder"].any() else None,
        unit=as_half(whole["unit"], 0) if compact else None,
        snr_db=decibels(signal, nmse),
    )


def _compact(scale_nb: Float, offset_nb: Float) -> dict[str, npt.NDArray[Any]] | None:
    """Round scales to 8 bits, in units of a row's own, and offsets from 8 scales to sixteenths of the block's."""
    unit_n1 = scale_nb.max(axis=1, keepdims=True) / np.float32(255)
    unit_n1 = _half_where_near(unit_n1, unit_n1 * _OF_A_STEP)
    level_nb = np.rint(scale_nb / unit_n1).clip(1, 255)
    sixteenths_nb = np.rint(offset_nb / (level_nb * unit_n1) * 16)
    # 128 but for what rounding the scale has moved.
    if (np.abs(sixteenths_nb) > 132).any():
        return None
    return {"unit": unit_n1, "scale": level_nb, "remainder": sixteenths_nb.clip(-128, 127)}


def _evenly_spaced(x: Float) -> _Grid | None:
    """Read blocks [b, 32] of at most 16 values at equal distances."""
    low, slack = x.min(axis=1, keepdims=True), np.abs(x).max(axis=1, keepdims=True) * _SLACK
    span = x.max(axis=1, keepdims=True) - low
    # A block of one value has no span: with the value itself as the step it lies on a grid. A block
    # of zeros takes a step of 1.
    span = np.where(span > 0, span, 15 * np.abs(low))
    span[span == 0] = 15
    values, scale = np.empty_like(x), np.empty_like(span)
    left = np.arange(len(x))
    # A block may use fewer than 16 levels: its span is then any number of steps from 15 down. Where
    # several fit, each of them holds the values.
    for steps in range(15, 0, -1):
        # Files store scales in float16. A scale moved by slack / 15 moves the farthest level by
        # slack.
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
    # What is within the slack is rounding. As 0 it saves the product that remainders need.
    remainder = low + zero * scale
    return values, scale, zero, np.where(np.abs(remainder) <= slack, np.float32(0), remainder)


def _multiples(x: Float) -> _Grid | None:
    """Read blocks [b, 32] of multiples of a scale, 127 being the largest."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    slack = largest * _SLACK
    # As above: the farthest level is 127 steps away.
    scale = _half_where_near(largest / np.float32(127), slack / np.float32(127))
    scale[scale == 0] = 1
    values = np.rint(x / scale)
    if (np.abs(x - values * scale) > slack).any():
        return None
    # Unsigned, about 128: the zero point of 8 bits where none is stored.
    return values + 128, scale, np.full_like(scale, 128), np.zeros_like(scale)


def _half_where_near(array: Float, error: Float) -> Float:
    """Numbers as float16 has them, where they are as near as `error` to that."""
    half = to_fp16(array).astype(np.float32)
    # What float16 has not is infinite there.
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(half - array) <= error, half, array)
