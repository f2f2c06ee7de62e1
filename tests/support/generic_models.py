"""Factories for `--model`, as a user would write them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, Any, Any]
IDS = {0: "batch", 1: "sequence"}


class Encoder(nn.Module):
    """nn.TransformerEncoder over a padding mask, whose fast path drops padding."""

    def __init__(self, activation: str = "gelu") -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, activation=activation, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, ids: Tensor, padding_mask: Tensor) -> Tensor:
        return self.encoder(self.embed(ids), src_key_padding_mask=padding_mask)


class Attends(nn.Module):
    """nn.MultiheadAttention, with weights (a softmax) and without (SDPA), batch second in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(16, 4, batch_first=True)
        self.second = nn.MultiheadAttention(16, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.first(x, x, x, key_padding_mask=mask == 0, need_weights=False)
        y = self.act(x + y).transpose(0, 1)
        z, weights = self.second(y, y, y)
        return self.act(z.transpose(0, 1)), weights


class ByHand(nn.Module):
    """Attention without SDPA; functions, methods, in-place functions, shared modules and repeated calls."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 16)
        self.a = nn.Linear(16, 16)
        self.b = self.a
        self.act = nn.SiLU()
        self.same_act = self.act

    def attend(self, x: Tensor) -> Tensor:
        score = (x @ x.mT) / math.sqrt(x.size(-1))
        causal = torch.ones(x.size(1), x.size(1), dtype=torch.bool).tril()
        return torch.softmax(score.masked_fill(~causal, -torch.inf), -1) @ x

    def forward(self, ids: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.attend(self.embed(ids)) * scale
        y = F.relu(self.a(F.gelu(x)), inplace=True)
        y += 1
        y = self.act(self.same_act(self.b(y).tanh())) + F.leaky_relu(F.softmax(x, dim=-1)).sigmoid()
        y = torch.tanh_(y + F.hardswish(x))
        return {"hidden": y, "score": y.mean(1).softmax(-1)}


class Unbatched(nn.Module):
    """SDPA over tensors without a batch, causal; and with a mask of numbers per head."""

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        flat = F.scaled_dot_product_attention(x[0], x[0], x[0], is_causal=True)
        return flat, F.scaled_dot_product_attention(x, x, x, attn_mask=bias)


def encoder() -> Made:
    torch.manual_seed(0)
    ids = torch.randint(31, (2, 12))
    mask = torch.arange(12) >= torch.tensor([[12], [7]])
    return Encoder(), (ids, mask), {"ids": IDS, "padding_mask": IDS}


def attends() -> Made:
    torch.manual_seed(0)
    examples = {"x": torch.randn(2, 9, 16), "mask": torch.ones(2, 9, dtype=torch.int64)}
    return Attends(), examples, {"x": IDS, "mask": IDS}


def by_hand() -> Made:
    torch.manual_seed(0)
    return ByHand(), {"ids": torch.randint(31, (2, 10)), "scale": 1.5}, {"ids": IDS}


def unbatched() -> Made:
    torch.manual_seed(0)
    bias = torch.randn(1, 3, 8, 8).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -torch.inf)
    x, heads = torch.randn(2, 3, 8, 4), {2: "sequence"}
    return Unbatched(), (x, bias), {"x": {0: "batch"} | heads, "bias": heads | {3: "sequence"}}


def not_a_triple() -> Any:
    return Encoder()


def not_a_module() -> Any:
    return 3, (), {}


def fails() -> Any:
    raise ValueError("no weights today")
