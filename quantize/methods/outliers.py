"""Inputs that a product multiplies apart, in float32: those that spoil the rounding of their neighbors.

`MatMulNBits` at `accuracy_level` 4 rounds the inputs to 8 bits in blocks, each to a fraction of its largest. Where one
input is always large, little is left of the 31 or 63 beside it (Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339).
There it is each token's values that decide; here the inputs are fixed, by calibration.

Shapes: N outputs, K inputs, o outliers, b blocks.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from .block_rounding import Float, as_half


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers:
    """Inputs that are multiplied in float32.

    Attributes:
        inputs: Which, ascending.
        weight_oN: What they are multiplied by.
    """

    inputs: list[int]
    weight_oN: npt.NDArray[np.float16] | Float


def outliers_of(
    weight_NK: Float, factors_K: Float | None, input_K: npt.NDArray[np.floating], block: int, count: int
) -> Outliers | None:
    """Choose a product's outliers.

    Args:
        weight_NK: Its exact weight.
        factors_K: What its columns are multiplied by, and the inputs divided; None for nothing.
        input_K: Mean square of each input before that.
        block: Inputs that are rounded together.
        count: How many at most.

    Returns:
        The outliers, or None where there are none.
    """
    factors_K = np.ones(len(input_K), np.float32) if factors_K is None else factors_K
    # The product gets x / factors and factors · W: so the powers of both are divided and
    # multiplied.
    power_K = np.einsum("nk,nk->k", weight_NK, weight_NK) * np.square(factors_K)
    inputs = choose_outliers(input_K / np.square(factors_K), power_K, block, count)
    # float16 if it is off by no more than half a unit of its 11 bits at the largest.
    weight_oN = (weight_NK[:, inputs] * factors_K[inputs]).T
    return Outliers(inputs=inputs, weight_oN=as_half(weight_oN, np.abs(weight_oN).max() / 2048)) if inputs else None


def choose_outliers(
    input_K: npt.NDArray[np.floating], weight_K: npt.NDArray[np.floating], block: int, count: int
) -> list[int]:
    """Choose, one after the other, the inputs whose absence lowers the noise of a product most.

    The noise of a block goes as the power of its largest input times that of its weights.

    Args:
        input_K: Mean square of each input.
        weight_K: Sum of squares of the weights of each input.
        block: Inputs that are rounded together.
        count: How many at most.

    Returns:
        The inputs, ascending; fewer than `count` where none of the others gains anything by itself.
    """
    rest_bk = np.zeros((-(-len(input_K) // block), block))
    rest_bk.reshape(-1)[: len(input_K)] = input_K
    weight_b = np.add.reduceat(weight_K, np.arange(0, len(weight_K), block))
    chosen = []
    for _ in range(count):
        # A block's noise goes by its largest input. Without that one, it goes by the second.
        second_b, first_b = np.partition(rest_bk, -2, axis=1)[:, -2:].T
        gain_b = (first_b - second_b) * weight_b
        best = int(gain_b.argmax())
        # Two inputs alike are largest: neither by itself would change the block's noise.
        if gain_b[best] <= 0:
            break
        entry = int(rest_bk[best].argmax())
        rest_bk[best, entry] = 0
        chosen.append(best * block + entry)
    return sorted(chosen)
