"""From token states to one sentence embedding, in the ways of sentence-transformers (`modules/pooling.py` of 6.2).

Shapes: B batch, T tokens, D model size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import make_activation
from .config import TransformerConfig

LEAST_WEIGHT = 1e-9
"""What is divided by at least: a row without real tokens has none. The bound is sentence-transformers' own."""


def _cls(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    # The first real token: where rows are padded on the left, it is not the first.
    first_B = mask_BT.to(torch.int32).argmax(1)
    return hidden_BTD.gather(1, first_B[:, None, None].expand(-1, 1, hidden_BTD.shape[2]))[:, 0]


def _mean(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    weight_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=LEAST_WEIGHT)


def _mean_sqrt_len(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    weight_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=LEAST_WEIGHT).sqrt()


def _max(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return hidden_BTD.masked_fill(mask_BT[:, :, None] == 0, -torch.inf).amax(1)


def _weighted_mean(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    # Weights are 1, 2, 3, … of the real tokens, wherever padding stands (Muennighoff 2022, arXiv:2202.08904).
    real_BT = mask_BT.to(hidden_BTD.dtype)
    weight_BT1 = (real_BT.cumsum(1) * real_BT)[:, :, None]
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=LEAST_WEIGHT)


def _last_token(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    # The last real token is where the number of a place, from 1 on, is greatest; none has 0, and so an embedding of 0.
    place_T = torch.arange(1, hidden_BTD.shape[1] + 1, device=hidden_BTD.device)
    last_B1 = (mask_BT * place_T).amax(1, keepdim=True)
    return (hidden_BTD * (place_T == last_B1)[:, :, None].to(hidden_BTD.dtype)).sum(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "mean_sqrt_len": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
"""Name → function of token states (B, T, D) and which tokens are real (B, T), int64 0 or 1, that gives (B, D)."""


class SentenceEmbedding(nn.Module):
    """From token states to one sentence embedding: pooled in one or several ways, then dense layers, then scaled."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.poolings, self.normalize = config.poolings or ("mean",), config.normalize
        sizes = zip(config.pooled_sizes, config.pooled_sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=config.dense_bias) for before, after in sizes)
        named = config.dense_activation
        self.activations = nn.ModuleList(
            nn.Identity() if named is None else make_activation(named) for _ in self.layers
        )

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, D), and which tokens are real, (B, T) → (B, the last of `pooled_sizes`)."""
        # One beside the other, where there are several, in the order of the configuration.
        parts = [POOLINGS[name](hidden_BTD, mask_BT) for name in self.poolings]
        x_BE = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x_BE = activation(layer(x_BE))
        return F.normalize(x_BE, dim=-1) if self.normalize else x_BE
