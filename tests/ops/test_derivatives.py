"""σ′ against what PyTorch's autograd gives in float64."""

import numpy as np
import pytest
import torch

from tfm.model.activations import make_activation
from tfm.ops import ACTIVATIONS, GATED, derivative_of

X = np.unique(np.concatenate([np.linspace(-40, 40, 8001), [-3.0, 0.0, 3.0, -1e4, 1e4, 1e-30, -1e-30]]))
ATOL = 2e-14
"""Measured: at most 5.1e-15 (gelu_tanh); softplus apart, see below."""


def expected(name: str) -> np.ndarray:
    x = torch.tensor(X, requires_grad=True)
    make_activation(name)(x).sum().backward()
    assert x.grad is not None
    return x.grad.numpy()


@pytest.mark.parametrize("name", [*ACTIVATIONS, *GATED])
def test_as_autograd(name: str) -> None:
    derivative = derivative_of(name)
    assert derivative is not None
    found = derivative(X)
    # from 20 on PyTorch's softplus is x, and 1 - sigmoid(20) is 2.06e-9
    np.testing.assert_allclose(found, expected(name), rtol=0, atol=2.1e-9 if name == "softplus" else ATOL)


def test_float32_is_taken_as_float64() -> None:
    derivative = derivative_of("gelu")
    assert derivative is not None
    x = np.linspace(-4, 4, 101, dtype=np.float32).reshape(101, 1)
    found = derivative(x)
    assert (found.dtype, found.shape) == (np.float64, (101, 1))
    np.testing.assert_array_equal(found, derivative(x.astype(np.float64)))


def test_an_unknown_activation_has_none() -> None:
    assert derivative_of("swish9") is None
