"""The oracles themselves, against arithmetic of 700 digits, loops over single numbers, and worked examples."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from tfm.model.config import RotaryScaling
from tfm.ops import ACTIVATIONS, evaluate_activation, oracles

mpmath.mp.dps = 700  # 1 + tanh u leaves 1e-261 of it at x = -20

EXACT: dict[str, Callable[[Any], Any]] = {
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "quick_gelu": lambda x: x / (1 + mpmath.exp(-mpmath.mpf("1.702") * x)),
    "relu": lambda x: max(x, 0),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "squared_relu": lambda x: max(x, 0) ** 2,
    "tanh": mpmath.tanh,
}
POINTS = [
    -700.0,
    -87.0,
    -20.0,
    -12.2,
    -5.5,
    -3.0,
    -2.7,
    -1.0,
    -1e-3,
    -1e-30,
    0.0,
    1e-45,
    1e-3,
    0.5,
    2.7,
    9.0,
    88.0,
    1e4,
]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_right_to_the_last_places(name: str) -> None:
    found = evaluate_activation(name, np.array(POINTS))
    exact = [float(EXACT[name](mpmath.mpf(x))) for x in POINTS]
    # A few roundings of 1.1e-16, which exp and erfc magnify by as much as their argument, up to 700
    # (and gelu_tanh by its cube, where its result is below 1e-300).
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-300)


def test_activations_have_limits_at_infinity() -> None:
    for name in ACTIVATIONS:
        below, above, unknown = evaluate_activation(name, np.array([-np.inf, np.inf, np.nan]))
        assert below == {"elu": -1.0, "tanh": -1.0}.get(name, 0.0)
        assert above == {"sigmoid": 1.0, "tanh": 1.0}.get(name, np.inf)
        assert np.isnan(unknown)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_is_the_loop_over_single_heads(softcap: float | None) -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, heads, length, 4)) for heads, length in ((6, 3), (2, 5), (2, 5)))
    mask = random.random((2, 1, 3, 5)) < 0.6
    mask[..., 1] = True
    found = oracles.attention(q, k, v, mask=mask, scale=0.3, softcap=softcap)
    for b, n, s in np.ndindex(2, 6, 3):
        scores = [0.3 * math.fsum(q[b, n, s] * k[b, n // 3, t]) for t in range(5)]
        scores = [softcap * math.tanh(score / softcap) for score in scores] if softcap else scores
        weights = [math.exp(score) if mask[b, 0, s, t] else 0.0 for t, score in enumerate(scores)]
        expected = sum(weight * v[b, n // 3, t] for t, weight in enumerate(weights)) / math.fsum(weights)
        np.testing.assert_allclose(found[b, n, s], expected, rtol=1e-13, atol=1e-14)


def test_attention_that_may_attend_nowhere() -> None:
    """Zeros where nothing is left, the mean of the values where a finite number swallows the scores."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 1, 3, 4)) for _ in range(3))
    for mask in (np.zeros((1, 1, 3, 3), dtype=bool), np.full((1, 1, 3, 3), -np.inf)):
        assert (oracles.attention(q, k, v, mask=mask, scale=1.0, softcap=None) == 0.0).all()
    least = np.full((1, 1, 3, 3), float(np.finfo(np.float32).min))
    found = oracles.attention(q, k, v, mask=least, scale=1.0, softcap=None)
    np.testing.assert_allclose(found, np.broadcast_to(v.mean(2, keepdims=True), v.shape), rtol=1e-14)


def test_relative_buckets_of_the_paper() -> None:
    """T5 as published: 32 buckets, exact up to half of a direction's, shared up to distance 128 and beyond."""
    causal = [oracles.relative_bucket(-d, 32, 128, causal=True) for d in (0, 1, 15, 16, 18, 19, 64, 112, 113, 128, 999)]
    assert causal == [0, 1, 15, 16, 16, 17, 26, 30, 31, 31, 31]
    assert oracles.relative_bucket(5, 32, 128, causal=True) == 0
    both = [oracles.relative_bucket(d, 32, 128, causal=False) for d in (0, -1, 1, -7, 7, -8, 8, -128, 128, 300)]
    assert both == [0, 1, 17, 7, 23, 8, 24, 15, 31, 31]


def test_alibi_slopes_of_the_paper() -> None:
    slopes = -oracles.alibi(np.array([1]), np.array([0]), 8)[0, :, 0, 0]
    assert slopes.tolist() == [2.0**-i for i in range(1, 9)]
    slopes = -oracles.alibi(np.array([1]), np.array([0]), 6)[0, :, 0, 0]
    assert slopes.tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


def test_rotary_turns_a_pair_by_its_angle() -> None:
    angle, magnitude = oracles.rotary_angles(np.array([[3]]), 4, 10000.0, None)
    np.testing.assert_allclose(angle, [[[3.0, 0.03]]], rtol=1e-15)
    turned = oracles.rotate(np.array([[[[1.0, 0.0, 0.0, 1.0, 7.0]]]]), angle, magnitude)
    expected = [math.cos(3), -math.sin(0.03), math.sin(3), math.cos(0.03), 7.0]
    np.testing.assert_allclose(turned[0, 0, 0], expected, rtol=1e-14)


def test_rotary_scalings_leave_fast_pairs_and_stretch_slow_ones() -> None:
    place = np.array([[1]])
    plain = oracles.rotary_angles(place, 64, 10000.0, None)[0][0, 0]
    for kind, fast in (("linear", 0.25), ("yarn", 1.0), ("llama3", 1.0)):
        scaling = RotaryScaling(kind=kind, factor=4.0, original_max_positions=512)  # type: ignore[arg-type]
        ratio = oracles.rotary_angles(place, 64, 10000.0, scaling)[0][0, 0] / plain
        np.testing.assert_allclose(ratio[[0, -1]], [fast, 0.25], rtol=1e-14)
        assert (np.diff(ratio) <= 1e-14).all()
    slower = {"short_factors": (1.5,) * 32, "long_factors": (4.0,) * 32}
    longrope = RotaryScaling(kind="longrope", factor=4.0, original_max_positions=16, **slower)  # type: ignore[arg-type]
    for last, factor in ((15, 1.5), (16, 4.0)):
        angle, magnitude = oracles.rotary_angles(np.array([[last]]), 64, 10000.0, longrope)
        np.testing.assert_allclose(angle[0, 0] / (last * plain), 1 / factor, rtol=1e-14)
        np.testing.assert_allclose(magnitude, math.sqrt(1.5), rtol=1e-14)  # 1 + ln 4 / ln 16
    dynamic = RotaryScaling(kind="dynamic", factor=4.0, original_max_positions=512)
    assert (oracles.rotary_angles(np.array([[511]]), 64, 10000.0, dynamic)[0] == 511 * plain).all()
    ratio = oracles.rotary_angles(np.array([[1023]]), 64, 10000.0, dynamic)[0][0, 0] / (1023 * plain)
    np.testing.assert_allclose(ratio[[0, -1]], [1.0, 0.2], rtol=1e-14)  # 4 · 1024 / 512 - 3 = 5 times slower


def test_norms_have_mean_zero_and_square_one() -> None:
    x = np.random.default_rng(0).standard_normal((3, 50)) * 2 + 7
    y = oracles.layer_norm(x, np.ones(50), np.zeros(50), 0.0)
    np.testing.assert_allclose([y.mean(-1), (y**2).mean(-1)], [[0.0] * 3, [1.0] * 3], atol=1e-14)
    np.testing.assert_allclose((oracles.rms_norm(x, np.ones(50), 0.0) ** 2).mean(-1), 1.0, rtol=1e-14)
    assert oracles.layer_norm(np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([5.0, 5.0]), 3.0).tolist() == [4, 6]
    np.testing.assert_allclose(oracles.rms_norm(np.array([1.0, 3.0]), np.array([2.0, 2.0]), 4.0), [2 / 3, 2.0])


def test_sinusoidal_table_of_the_paper() -> None:
    table = oracles.sinusoidal(6, 4)
    np.testing.assert_allclose(table[5], [math.sin(5), math.cos(5), math.sin(0.05), math.cos(0.05)], rtol=1e-14)
