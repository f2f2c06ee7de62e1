"""Four bits in blocks of 32, each block's scale and offset fitted to what its inputs carry (as llama.cpp's k-quants).

A block is (q - 8) · scale + remainder with any remainder, as GGUF's Q4_1 has it, rather than one whose zero is one of
its 16 values. So a checkpoint that was rounded once, and then moved a little by training, falls nearly back onto its
own grid; and where there was none, an error counts by the power of the input that it is multiplied by.

Shapes: N outputs, K inputs, b blocks.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .block_rounding import Blocks, Float, as_half, pack, to_fp16
from .rounding import decibels

FITTED_BLOCK = 32
"""Inputs in a block."""

_CHUNK = 1 << 19
"""Elements fitted at a time, so that it needs little memory beside the weight."""

_SPANS = (0.75, 0.9, 1.0)
"""Parts of a block's range that the 16 values span at first."""

_ROUNDS = 5
"""Times that values are rounded and scale and offset fitted to them; more change nothing that can be measured."""

_LEAST_POWER = 0.01
"""An input's least weight, of the mean: one that is silent on the calibration data may not be so elsewhere."""

_WORSE = 1.5
"""How much noisier blocks may be on average by scales of 8 bits than by those of 16, which take half a bit a weight
more: where a row has a few large blocks, the others have hardly any levels of its unit left."""

_MIDDLE = np.float32(8)
"""What onnxruntime's kernel subtracts where no zero points are stored."""

_Fit = tuple[Float, Float, Float]
"""Values [b, block], and scales and offsets [b, 1]: a weight is offset + scale · value."""


def fit_blocks(weight_NK: Float, power_K: npt.NDArray[np.floating] | None) -> Blocks:
    """Round a matrix to 4 bits.

    Args:
        weight_NK: Float32, finite; blocks of 32 run along K, the last of a row being filled up with its last entry.
        power_K: Mean square of each input; None: all weigh alike.

    Returns:
        The packed matrix: scales and remainders of 8 bits, in a row's own units, or of 16 where these are too coarse.
    """
    rows, columns = weight_NK.shape
    blocks = -(-columns // FITTED_BLOCK)
    filling = (0, blocks * FITTED_BLOCK - columns)
    weigh_bk = np.pad(_weights(power_K, columns), filling, constant_values=_LEAST_POWER).reshape(blocks, FITTED_BLOCK)
    parts: dict[bool, list[dict[str, npt.NDArray[Any]]]] = {True: [], False: []}
    signal, noise, shares = 0.0, {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    step = max(1, _CHUNK // (blocks * FITTED_BLOCK))
    for start in range(0, rows, step):
        x_nK = np.pad(weight_NK[start : start + step], ((0, 0), filling), mode="edge")
        x = x_nK.reshape(-1, FITTED_BLOCK)
        weigh = np.broadcast_to(weigh_bk, (len(x_nK), *weigh_bk.shape)).reshape(x.shape)
        fit = _fitted(x, weigh)
        signal_b = (weigh * np.square(x)).sum(axis=1, dtype=np.float64)
        signal += float(signal_b.sum())
        for small in (True, False):
            stored, scale, offset = _stored(fit, x, weigh, blocks, small=small)
            values = _nearest(x, scale, offset)
            noise_b = (weigh * np.square(x - offset - scale * values)).sum(axis=1, dtype=np.float64)
            noise[small] += float(noise_b.sum())
            shares[small] += float((noise_b[signal_b > 0] / signal_b[signal_b > 0]).sum())
            parts[small].append({**stored, "packed": pack(values.reshape(len(x_nK), -1), 4)})
    small = shares[True] <= _WORSE * shares[False]
    whole = {key: np.concatenate([part[key] for part in parts[small]]) for key in parts[small][0]}
    return Blocks(
        packed=whole["packed"].astype(np.uint8),
        scale=whole["scale"].astype(np.uint8) if small else as_half(whole["scale"], 0),
        zero=None,
        remainder=whole["remainder"].astype(np.int8) if small else as_half(whole["remainder"], 0),
        unit=as_half(whole["unit"], 0) if small else None,
        snr_db=decibels(signal, noise[small]),
    )


def _weights(power_K: npt.NDArray[np.floating] | None, columns: int) -> Float:
    """What an error counts by, 1 on average."""
    if power_K is None or not power_K.any():
        return np.ones(columns, np.float32)
    return np.maximum(power_K / power_K.mean(), _LEAST_POWER).astype(np.float32)


def _fitted(x: Float, weigh: Float) -> _Fit:
    """Fit blocks [b, 32]: by turns the values to scale and offset, and these to the values by least squares."""
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    total = weigh.sum(axis=1, keepdims=True)
    mean_x = (weigh * x).sum(axis=1, keepdims=True) / total
    best: _Fit | None = None
    least = np.full(low.shape, np.inf, np.float32)
    for span in _SPANS:
        scale = _positive((high - low) * np.float32(span / 15), low)
        offset = (low + high) / 2 - scale * np.float32(7.5)
        for _ in range(_ROUNDS):
            values = _nearest(x, scale, offset)
            mean_q = (weigh * values).sum(axis=1, keepdims=True) / total
            apart = weigh * (values - mean_q)
            along, across = (apart * values).sum(axis=1, keepdims=True), (apart * x).sum(axis=1, keepdims=True)
            # Blocks whose values are all one, or go the other way, keep the scale that they have.
            scale = np.divide(across, along, out=scale.copy(), where=(along > 0) & (across > 0))
            offset = mean_x - scale * mean_q
        values = _nearest(x, scale, offset)
        error = (weigh * np.square(x - offset - scale * values)).sum(axis=1, keepdims=True)
        better = error < least
        found = (values, scale, offset)
        best = found if best is None else _chosen(better, found, best)
        least = np.minimum(error, least)
    assert best is not None
    return best


def _chosen(better: npt.NDArray[np.bool_], found: _Fit, best: _Fit) -> _Fit:
    return tuple(np.where(better, new, old) for new, old in zip(found, best, strict=True))  # type: ignore[return-value]


def _stored(
    fit: _Fit, x: Float, weigh: Float, blocks: int, *, small: bool
) -> tuple[dict[str, npt.NDArray[np.floating]], Float, Float]:
    """Round scales and offsets as they are stored; gives that, and the scales and offsets [b, 1] that it means.

    Offsets are fitted anew to the scales that are stored.
    """
    values, scale, _ = fit
    scale_nb = scale.reshape(-1, blocks)
    stored: dict[str, npt.NDArray[np.floating]] = {}
    if small:
        unit_n1 = _halved(scale_nb.max(axis=1, keepdims=True) / np.float32(255))
        stored["unit"], stored["scale"] = unit_n1, np.rint(scale_nb / unit_n1).clip(1, 255)
        scale = (stored["scale"] * unit_n1).reshape(-1, 1)
    else:
        stored["scale"] = _halved(scale_nb)
        scale = stored["scale"].reshape(-1, 1)
    rest = (weigh * (x - scale * (values - _MIDDLE))).sum(axis=1, keepdims=True) / weigh.sum(axis=1, keepdims=True)
    if small:
        sixteenths = np.rint(rest / scale * 16).clip(-128, 127)
        stored["remainder"] = sixteenths.reshape(-1, blocks)
        rest = sixteenths * scale / np.float32(16)
    else:
        # A 64th of a step.
        rest = _halved(rest, _MIDDLE * scale)
        stored["remainder"] = rest.reshape(-1, blocks)
    return stored, scale, rest - _MIDDLE * scale


def _nearest(x: Float, scale: Float, offset: Float) -> Float:
    return np.rint((x - offset) / scale).clip(0, 15)


def _positive(scale: Float, low: Float) -> Float:
    """A block of one value has no span: any step will do, as its offset is that value."""
    return np.where(scale > 0, scale, np.maximum(np.abs(low), np.float32(2.0**-20)))


def _halved(array: Float, of: Float | None = None) -> Float:
    """Numbers as float16 has them, where that keeps 9 bits of them, or of what they are compared with."""
    half = to_fp16(array).astype(np.float32)
    # What float16 has not is infinite there.
    with np.errstate(invalid="ignore"):
        near = np.abs(half - array) <= np.abs(array if of is None else of) / 512
    return np.where(near, half, array)
