"""Where a token stands: the sinusoidal table of the paper."""

import torch
from torch import Tensor


def sinusoidal_positions(max_positions: int, d_model: int) -> Tensor:
    """Compute the position table of "Attention Is All You Need", section 3.5.

    PE(p, 2i) = sin(p / 10000^(2i/D)) and PE(p, 2i+1) = cos(p / 10000^(2i/D)), in float64 and
    then rounded, so that every entry is the float32 nearest to its exact value.

    Args:
        max_positions: Number of positions P.
        d_model: Model size D, even.

    Returns:
        Tensor (P, D), float32.
    """
    position_P1 = torch.arange(max_positions, dtype=torch.float64)[:, None]
    pair = torch.arange(0, d_model, 2, dtype=torch.float64)
    angle_PI = position_P1 * torch.pow(10000.0, -pair / d_model)  # I = D / 2 pairs
    return torch.stack([angle_PI.sin(), angle_PI.cos()], dim=-1).flatten(1).to(torch.float32)
