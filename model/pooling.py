"""From token states to one sentence embedding, in the ways of sentence-transformers (`modules/pooling.py` of 6.2).

Shapes: B batch, T tokens, D model size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LEAST_WEIGHT = 1e-9
"""What is divided by at least: a row without real tokens has none. The bound is sentence-transformers' own."""


def _cls(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return hidden_BTD[:, 0]


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
