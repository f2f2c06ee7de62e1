"""Activations against float64 formulas written from their papers, not from torch."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tfm.errors import ConfigError
from tfm.model import ComposedActivation, TransformerConfig
from tfm.model.activations import check_activation, make_activation
from tfm.model.layer import FeedForward
from tfm.ops import ACTIVATIONS, GATED, is_gated

Array = np.ndarray

erf = np.vectorize(math.erf, otypes=[np.float64])
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def softplus(x: Array) -> Array:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


ORACLE: dict[str, Callable[[Array], Array]] = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "gelu": lambda x: 0.5 * x * erfc(-x / math.sqrt(2.0)),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "mish": lambda x: x * np.tanh(softplus(x)),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "squared_relu": lambda x: np.maximum(x, 0.0) ** 2,
    "tanh": np.tanh,
}

GRID = np.concatenate([np.linspace(-12, 12, 4801), [-1e4, -100, -50, -20, 20, 50, 100, 1e4, 0.0, -0.0, 1e-20, -1e-20]])
GRID = GRID.astype(np.float32)


def test_there_is_an_oracle_for_each() -> None:
    assert set(ORACLE) == set(ACTIVATIONS)
    assert len(ACTIVATIONS) == 12
    assert {gated.gate for gated in GATED.values()} <= set(ACTIVATIONS)
    assert not set(GATED) & set(ACTIVATIONS)
    composed = {name for name in ACTIVATIONS if isinstance(make_activation(name), ComposedActivation)}
    assert composed == {"quick_gelu", "squared_relu"}


@pytest.mark.parametrize("name", sorted(ORACLE))
def test_float32_agrees_with_the_formula(name: str) -> None:
    got = make_activation(name)(torch.from_numpy(GRID)).numpy().astype(np.float64)
    want = ORACLE[name](GRID.astype(np.float64))
    assert np.isfinite(got).all()
    # 4 ulp of float32 (2⁻²¹) on what is large; 1e-6 absolute where terms cancel: 1 + tanh and 1 + erf lose the left
    # tail to the rounding of 1.0, 6e-8, times |x| ≤ 12; softplus is linear past x = 20, off by e⁻²⁰ = 2e-9.
    np.testing.assert_allclose(got, want, rtol=2.0**-21, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ORACLE))
def test_float64_agrees_with_the_formula(name: str) -> None:
    x = GRID.astype(np.float64)
    got = make_activation(name)(torch.from_numpy(x)).numpy()
    # As above in float64 (1e-14), but for torch's softplus, which is x itself past x = 20: off by e⁻²⁰ = 2.1e-9.
    np.testing.assert_allclose(got, ORACLE[name](x), rtol=1e-13, atol=3e-9 if name == "softplus" else 1e-14)


def test_the_two_gelus_are_two() -> None:
    x = torch.tensor([-2.70])
    gap = (make_activation("gelu")(x) - make_activation("gelu_tanh")(x)).abs().item()
    assert 4.6e-4 < gap < 4.8e-4  # their known largest distance, 4.7e-4


@pytest.mark.parametrize("name", [*sorted(ORACLE), *sorted(GATED)])
def test_feed_forward_agrees_with_the_formula(name: str) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=3, d_model=6, nhead=2, dim_feedforward=10, activation=name, dropout=0.5)
    block = FeedForward(config).eval()
    x = torch.randn(2, 5, 6)
    got = block(x).detach().numpy()
    w = {key: value.numpy().astype(np.float64) for key, value in block.state_dict().items()}
    hidden = x.numpy().astype(np.float64) @ w["linear1.weight"].T + w["linear1.bias"]
    if is_gated(name):
        assert w["linear1.weight"].shape == (20, 6)
        hidden = hidden[..., :10] * ORACLE[GATED[name].gate](hidden[..., 10:])
    else:
        assert w["linear1.weight"].shape == (10, 6)
        hidden = ORACLE[name](hidden)
    want = hidden @ w["linear2.weight"].T + w["linear2.bias"]
    np.testing.assert_allclose(got, want, atol=2e-6)  # sums of 10 terms of order 1, each rounded at 6e-8


@pytest.mark.parametrize(
    ("typo", "near"), [("gelo", "gelu"), ("swigul", "swiglu"), ("SiLU", "silu"), ("relu6", "relu")]
)
def test_unknown_name_is_told_the_nearest(typo: str, near: str) -> None:
    for check in (check_activation, make_activation):
        with pytest.raises(
            ConfigError, match=rf"^unknown activation '{typo}'; the nearest is '{near}' \(known: .*tanh"
        ):
            check(typo)
