"""Smoothing: a part of what an input channel ranges over is taken from the activations and given to the weights."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def smoothing(largest_K: Floats, weight_KN: Floats, alpha: float) -> Floats:
    """The divisor of each input channel.

    Args:
        largest_K: Largest magnitude of each input channel, over calibration data.
        weight_KN: The weights.
        alpha: How much of the range goes from the activations to the weights: 0 nothing, 1 all.

    Returns:
        Divisors (K,), float32, of mean 1.
    """
    # Neither a channel that was always zero nor one without weights may be divided by.
    tiny = np.float32(1e-5)
    scale: Floats = np.maximum(largest_K, tiny) ** alpha / np.maximum(np.abs(weight_KN).max(axis=1), tiny) ** (
        1 - alpha
    )
    return (scale / scale.mean()).astype(np.float32)
