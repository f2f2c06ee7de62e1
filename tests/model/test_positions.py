"""The position table against the formula of the paper, entry by entry."""

import math

import numpy as np
import pytest
import torch

from tfm.model import Transformer, TransformerConfig
from tfm.model.positions import sinusoidal_positions


@pytest.mark.parametrize(("length", "d_model"), [(1, 2), (50, 6), (600, 64)])
def test_table_is_the_papers(length: int, d_model: int) -> None:
    table = sinusoidal_positions(length, d_model)
    assert table.dtype == torch.float32
    want = np.empty((length, d_model))
    for position in range(length):
        for pair in range(d_model // 2):
            angle = position / 10000.0 ** (2 * pair / d_model)
            want[position, 2 * pair] = math.sin(angle)
            want[position, 2 * pair + 1] = math.cos(angle)
    # Rounding to float32 is half an ulp of at most 1 (3e-8); the angle itself, up to 600, costs 1e-13 in float64.
    np.testing.assert_allclose(table.numpy().astype(np.float64), want, rtol=0, atol=3.1e-8)


def test_sinusoidal_table_is_no_weight_and_learned_is() -> None:
    sizes = {"vocab_size": 5, "d_model": 4, "nhead": 1, "num_encoder_layers": 1, "max_positions": 7, "kind": "encoder"}
    assert "encoder.embedding.position" not in Transformer(TransformerConfig(**sizes)).state_dict()
    learned = Transformer(TransformerConfig(**sizes, positions="learned")).state_dict()
    assert learned["encoder.embedding.position"].shape == (7, 4)
