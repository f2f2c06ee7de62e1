"""Rounding weights to 8 bits, and what is lost by rounding."""

import numpy as np
import numpy.typing as npt


def round_symmetric(
    weight: npt.NDArray[np.float32], axis: int, limit: int = 127
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a weight to int8 with one scale along all of `axis`.

    Args:
        weight: Float32, 2-D.
        axis: The axis that shares a scale: the inputs of a product, or the entries of an embedding row.
        limit: The largest magnitude of the rounded values.

    Returns:
        int8 values in [-limit, limit] and the scales, float32 with `axis` kept at size 1; weight ≈ values · scale.
    """
    largest = np.abs(weight).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / limit, 1).astype(np.float32)
    return np.rint(weight / scale).clip(-limit, limit).astype(np.int8), scale


def snr_db(exact: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Signal-to-noise ratio in dB: infinite where nothing was lost, minus infinite where there was no signal."""
    return decibels(
        float(np.square(exact).sum(dtype=np.float64)), float(np.square(exact - found).sum(dtype=np.float64))
    )


def decibels(signal: float, noise: float) -> float:
    """Signal-to-noise ratio of two sums of squares, in dB."""
    if not noise:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
