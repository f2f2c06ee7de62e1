"""Layer norm (Ba et al. 2016) and its form without mean or bias, RMSNorm (Zhang & Sennrich 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · w over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; any shape that ends in `size`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(config: TransformerConfig, size: int | None = None) -> nn.Module:
    """Make the norm a configuration asks for, over the model size unless told otherwise."""
    size = config.d_model if size is None else size
    if config.norm == "rms":
        return RMSNorm(size, config.layer_norm_eps)
    return nn.LayerNorm(size, config.layer_norm_eps, bias=config.norm_bias)


def make_head_norm(config: TransformerConfig, heads: int) -> nn.Module | None:
    """Make the norm on queries or keys where the configuration asks for it: on each head, or on so many together."""
    if not config.qk_norm:
        return None
    return RMSNorm(config.head_size * (1 if config.qk_norm_span == "head" else heads), config.layer_norm_eps)
