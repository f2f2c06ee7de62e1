"""What each op computes, in float64, written from the papers and definitions; none of it uses torch.

Shapes: B batch, S query length, T key length, N heads, K key/value heads, H head size, P positions.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Scaling(Protocol):
    """How rotary positions are stretched; `tfm.model.RotaryScaling` is one."""

    @property
    def kind(self) -> str:
        """One of "linear", "dynamic", "yarn", "llama3" and "longrope"."""

    @property
    def factor(self) -> float:
        """How many times longer than trained."""

    @property
    def original_max_positions(self) -> int:
        """Positions that were trained on."""

    @property
    def low_frequency_factor(self) -> float:
        """llama3: below so many rotations over the trained length a pair is stretched."""

    @property
    def high_frequency_factor(self) -> float:
        """llama3: above so many it is not."""

    @property
    def short_factors(self) -> Sequence[float] | None:
        """longrope: how much slower each pair turns up to the trained length."""

    @property
    def long_factors(self) -> Sequence[float] | None:
        """longrope: the same of longer sequences."""

    @property
    def beta_fast(self) -> float:
        """yarn: above so many rotations a pair is not stretched."""

    @property
    def beta_slow(self) -> float:
        """yarn: below so many it is, wholly."""


def attention(
    q_BNSH: Array, k_BKTH: Array, v_BKTH: Array, *, mask: npt.NDArray[Any] | None, scale: float, softcap: float | None
) -> Array:
    """Compute softmax(c · tanh(QKᵀ · scale / c) + mask)V; (B, N, S, H).

    A query that may attend nowhere, all False or -inf, has no softmax: it gives zeros, as eager PyTorch's
    `F.scaled_dot_product_attention` does. One that a large finite number masks everywhere has one, of that number.

    Args:
        q_BNSH: Queries.
        k_BKTH: Keys; query head n reads key head n // (N / K).
        v_BKTH: Values.
        mask: Broadcasts to (B, N, S, T); True means "may attend", a float is added.
        scale: Factor on QKᵀ.
        softcap: c, or None for none.
    """
    # Repeat and not tile: neighbouring query heads share a key head.
    groups = q_BNSH.shape[1] // k_BKTH.shape[1]
    k_BNTH, v_BNTH = np.repeat(k_BKTH, groups, axis=1), np.repeat(v_BKTH, groups, axis=1)
    score_BNST = np.einsum("bnsh,bnth->bnst", q_BNSH, k_BNTH) * scale
    if softcap is not None:
        score_BNST = softcap * np.tanh(score_BNST / softcap)
    if mask is not None:
        score_BNST = score_BNST + (np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask)
    # The greatest score is taken off, so that no exponential overflows. Where all are -inf nothing
    # is taken off, since -inf - -inf is NaN; the weights are then zeros, and so is their sum.
    top_BNS1 = score_BNST.max(-1, keepdims=True)
    weight_BNST = np.exp(score_BNST - np.where(np.isneginf(top_BNS1), 0.0, top_BNS1))
    total_BNS1 = weight_BNST.sum(-1, keepdims=True)
    return np.einsum("bnst,bnth->bnsh", weight_BNST / np.where(total_BNS1 == 0.0, 1.0, total_BNS1), v_BNTH)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Compute (x - E[x]) / √(Var[x] + ε) · w + b over the last dimension (Ba et al. 2016)."""
    # numpy's var divides by D, as both papers and PyTorch do, and not by D - 1.
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Compute x / √(E[x²] + ε) · w over the last dimension (Zhang & Sennrich 2019)."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def sinusoidal(positions: int, size: int) -> Array:
    """Compute PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i + 1) = cos of it (Vaswani et al. 2017, 3.5); (P, D)."""
    # Entries 2i and 2i + 1 share an angle.
    entry_D = np.arange(size)
    angle_PD = np.arange(positions)[:, None] / 10000.0 ** (entry_D // 2 * 2 / size)
    return np.where(entry_D % 2 == 0, np.sin(angle_PD), np.cos(angle_PD))


def rotary_angles(
    position_ids_BS: npt.NDArray[np.int64], size: int, base: float, scaling: Scaling | None
) -> tuple[Array, float]:
    """Angle of each position and pair, (B, S, R / 2), and the factor on cosines and sines.

    Su et al. 2021, arXiv:2104.09864, section 3.2.2: p · base^(-2i/R). The scalings: linear, Chen et al. 2023,
    arXiv:2306.15595; dynamic, NTK-aware as Hugging Face has it; yarn, Peng et al. 2023, arXiv:2309.00071, section 3.2
    with the bounds of its reference code; llama3, Meta's reference code of Llama 3.1; longrope, Ding et al. 2024,
    arXiv:2402.13753, with the temperature of Phi 3's code.
    """
    pair = np.arange(size // 2)
    theta, magnitude = base ** (-2.0 * pair / size), 1.0
    if scaling is not None:
        factor, trained = scaling.factor, scaling.original_max_positions
        rotations = trained * theta / (2.0 * math.pi)  # over the trained length
        # Slower by the factor: the same as positions that are divided by it.
        if scaling.kind == "linear":
            theta = theta / factor
        elif scaling.kind == "dynamic":
            # The base grows with the longest sequence of the batch, so that the slowest pair turns
            # no further than in training; short texts keep the trained base.
            length = max(int(position_ids_BS.max()) + 1, trained)
            stretch = factor * length / trained - (factor - 1.0)
            theta = (base * stretch ** (size / (size - 2.0))) ** (-2.0 * pair / size)
        elif scaling.kind == "llama3":
            # Pairs of many rotations are kept, those of few are stretched, and the share runs
            # linearly between. Clipping makes one formula of the three cases of the reference code.
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept = np.clip((rotations - low) / (high - low), 0.0, 1.0)
            theta = theta * (kept + (1.0 - kept) / factor)
        elif scaling.kind == "longrope":
            # The longest sequence of the batch decides for all of it.
            far = int(position_ids_BS.max()) + 1 > trained
            slower = np.asarray((scaling.long_factors if far else scaling.short_factors) or (), dtype=np.float64)
            # The temperature is √(ln(trained · factor) / ln(trained)): the entropy of attention over so many keys.
            theta, magnitude = theta / slower, math.sqrt(math.log(trained * factor, trained))
        else:
            # The pair that turns `beta` times over the trained length, as a real index:
            # base^(-2i/R) · trained / 2π = beta, solved for i.
            bounds = [
                size * math.log(trained / (2.0 * math.pi * beta)) / (2.0 * math.log(base))
                for beta in (scaling.beta_fast, scaling.beta_slow)
            ]
            # Rounded outwards, and bounded as the reference code has it.
            low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), size - 1)
            interpolated = np.clip((pair - low) / (high - low), 0.0, 1.0)
            theta = theta * (1.0 - interpolated + interpolated / factor)
            # Yarn's attention temperature: on cosines and sines it scales queries and keys alike.
            magnitude = 0.1 * math.log(factor) + 1.0
    return position_ids_BS[:, :, None] * theta, magnitude


def rotate(x_BNSH: Array, angle_BSI: Array, magnitude: float) -> Array:
    """Turn the pairs (i, i + R / 2) of each head's first R entries, as complex numbers, by the angles."""
    pairs = angle_BSI.shape[-1]
    # Complex numbers, where the models compute with cosines and sines: another formula, so that one
    # slip does not pass in both.
    turned = x_BNSH[..., :pairs] + 1j * x_BNSH[..., pairs : 2 * pairs]
    turned = turned * (magnitude * np.exp(1j * angle_BSI))[:, None]
    # What lies behind the R entries carries no position, and passes as it is.
    return np.concatenate([turned.real, turned.imag, x_BNSH[..., 2 * pairs :]], axis=-1)


def relative_bucket(distance: int, buckets: int, max_distance: int, *, causal: bool) -> int:
    """T5's bucket of key position - query position (Raffel et al. 2020, section 2.1; its code), in whole numbers.

    The far bucket floor(n · log(d / near) / log(max / near)) is the greatest k with (max / near)^k ≤ (d / near)^n.
    """
    offset = 0
    # Without a direction half of the buckets are for keys before the query, half for those behind.
    if not causal:
        buckets //= 2
        offset, distance = (buckets if distance > 0 else 0), -abs(distance)
    near, distance = buckets // 2, max(-distance, 0)
    if distance < near:
        return offset + distance
    far = buckets - near
    # Python's integers are exact. A logarithm may round across the edge of a bucket. k = 0 always
    # holds, since the distance is at least `near`.
    steps = [
        k
        for k in range(far)
        if max_distance**k * near**far <= distance**far * near**k  # both sides times near^(k + far)
    ]
    return offset + near + steps[-1]


def alibi(query_S: npt.NDArray[np.int64], key_T: npt.NDArray[np.int64], nhead: int) -> Array:
    """Compute -slope · distance, (1, N, S, T) (Press et al. 2022, arXiv:2108.12409).

    The slopes of n heads, n a power of 2, are 2^(-8/n), 2^(-16/n) and so on. Of other numbers of heads, as in the
    paper's code, those of the next smaller power of 2, then every other one of twice as many heads.
    """

    def slopes(heads: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]

    # The greatest power of 2 that is not above the number of heads.
    power = 1 << (nhead.bit_length() - 1)
    slope_N = np.array(slopes(power) + slopes(2 * power)[::2][: nhead - power])
    return (-slope_N[:, None, None] * np.abs(key_T[None, :] - query_S[:, None]))[None]
