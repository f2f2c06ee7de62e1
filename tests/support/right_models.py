"""Modules of many makings that are right, and so must pass: (module, example inputs, dynamic axes) by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, dict[str, Any], dict[str, dict[int, str]]]
AXES = {"x": {0: "batch", 1: "sequence"}}
MASKED = {**AXES, "mask": {0: "batch", 1: "sequence"}}
D = 16


def states(length: int = 6) -> dict[str, Any]:
    return {"x": torch.randn(2, length, D)}


def ids(below: int = 30) -> dict[str, Any]:
    return {"x": torch.randint(1, below, (2, 6))}


class Wrap(nn.Module):
    """A module with parts, and a function of them and the inputs."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, **inputs: Tensor) -> Any:
        return self.call(self, **inputs)


def split(x_BSD: Tensor, heads: int = 2) -> Tensor:
    return x_BSD.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x_BNSH: Tensor) -> Tensor:
    return x_BNSH.transpose(1, 2).flatten(2)


def sdpa(m: Any, x: Tensor, **options: Any) -> Tensor:
    q, k, v = (split(part) for part in m.qkv(x).chunk(3, -1))
    return joined(F.scaled_dot_product_attention(q, k, v, **options))


def by_hand(m: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (split(part) for part in m.qkv(x).chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
    return joined(torch.softmax(scores if bias is None else scores + bias, -1) @ v)


def qkv() -> dict[str, Any]:
    return {"qkv": nn.Linear(D, 3 * D)}


def feed_forward(act: nn.Module) -> dict[str, Any]:
    return {"up": nn.Linear(D, 24), "act": act, "down": nn.Linear(24, D)}


def act_of(m: Any, x: Tensor) -> Any:
    return m.down(m.act(m.up(x)))


def encoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 24, dropout=0.0, batch_first=True, **options)


def plain(call: Callable[..., Any], parts: dict[str, Any], examples: dict[str, Any] | None = None) -> Made:
    return Wrap(call, **parts), examples or states(), AXES


def masked(call: Callable[..., Any], parts: dict[str, Any]) -> Made:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    return Wrap(call, **parts), {**states(), "mask": mask}, MASKED


def zero_row(size: int = 30) -> nn.Embedding:
    return nn.Embedding(size, D, padding_idx=0)


def grouped(m: Any, x: Tensor) -> Tensor:
    q, k, v = split(m.q(x), 4), split(m.k(x), 2), split(m.v(x), 2)
    k, v = (part.repeat_interleave(2, 1) for part in (k, v))
    return joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def relative(m: Any, x: Tensor) -> Tensor:
    place = torch.arange(x.size(1))
    distance = (place[None] - place[:, None]).clamp(-4, 4) + 4
    return by_hand(m, x, m.table(distance).permute(2, 0, 1)[None])


def alibi(m: Any, x: Tensor) -> Tensor:
    place = torch.arange(x.size(1), dtype=torch.float32)
    return by_hand(m, x, -(place[None] - place[:, None]).abs() * m.slopes[:, None, None])


def rotary(m: Any, x: Tensor) -> Tensor:
    q, k, v = (split(part) for part in m.qkv(x).chunk(3, -1))
    angle = torch.arange(x.size(1))[:, None] * m.speed[None]
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def turn(y: Tensor) -> Tensor:
        a, b = y.chunk(2, -1)
        return y * cos + torch.cat([-b, a], -1) * sin

    return joined(F.scaled_dot_product_attention(turn(q), turn(k), v))


def convolved(m: Any, x: Tensor) -> Tensor:
    return by_hand(m, torch.relu(m.conv(x.transpose(1, 2))).transpose(1, 2))


MODELS: dict[str, Callable[[], Made]] = {
    "transformer encoder": lambda: plain(
        lambda m, x: m.layers(x), {"layers": nn.TransformerEncoder(encoder_layer(), 2)}
    ),
    "norm first": lambda: plain(lambda m, x: m.layer(x), {"layer": encoder_layer(norm_first=True)}),
    "gelu layer": lambda: plain(lambda m, x: m.layer(x), {"layer": encoder_layer(activation="gelu")}),
    "layer without biases": lambda: plain(lambda m, x: m.layer(x), {"layer": encoder_layer(bias=False)}),
    "dropout in train mode": lambda: plain(
        lambda m, x: m.layer(x), {"layer": nn.TransformerEncoderLayer(D, 2, 24, dropout=0.3, batch_first=True).train()}
    ),
    "multihead attention": lambda: plain(
        lambda m, x: m.mha(x, x, x)[0], {"mha": nn.MultiheadAttention(D, 2, batch_first=True)}
    ),
    "attention weights too": lambda: plain(
        lambda m, x: m.mha(x, x, x), {"mha": nn.MultiheadAttention(D, 2, batch_first=True)}
    ),
    "key and value of other sizes": lambda: plain(
        lambda m, x: m.mha(x, x[..., :5], x[..., :7])[0],
        {"mha": nn.MultiheadAttention(D, 2, kdim=5, vdim=7, batch_first=True)},
    ),
    "attention by hand": lambda: plain(by_hand, qkv()),
    "attention of functions": lambda: plain(sdpa, qkv()),
    "causal": lambda: plain(lambda m, x: sdpa(m, x, is_causal=True), qkv()),
    "scaled otherwise": lambda: plain(lambda m, x: sdpa(m, x, scale=0.7), qkv()),
    "grouped queries": lambda: plain(
        grouped, {"q": nn.Linear(D, 4 * D), "k": nn.Linear(D, 2 * D), "v": nn.Linear(D, 2 * D)}
    ),
    "relative bias": lambda: plain(relative, {**qkv(), "table": nn.Embedding(9, 2)}),
    "alibi": lambda: plain(alibi, {**qkv(), "slopes": torch.tensor([0.5, 0.25])}),
    "rotary": lambda: plain(rotary, {**qkv(), "speed": torch.tensor([1.0, 0.3, 0.1, 0.03])}),
    "einsum attention": lambda: plain(
        lambda m, x: torch.einsum("bst,btd->bsd", torch.softmax(torch.einsum("bsd,btd->bst", x, m.k(x)), -1), x),
        {"k": nn.Linear(D, D)},
    ),
    "bmm attention": lambda: plain(
        lambda m, x: torch.bmm(torch.softmax(torch.bmm(x, m.k(x).transpose(1, 2)) / 4, -1), x), {"k": nn.Linear(D, D)}
    ),
    "masked by filling": lambda: masked(
        lambda m, x, mask: by_hand(
            m, x, torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, -1e9)[:, None, None]
        ),
        qkv(),
    ),
    "masked by a boolean": lambda: masked(lambda m, x, mask: sdpa(m, x, attn_mask=(mask != 0)[:, None, None]), qkv()),
    "masked outputs": lambda: masked(lambda m, x, mask: by_hand(m, x) * mask[..., None], qkv()),
    "mean over a mask": lambda: masked(
        lambda m, x, mask: (by_hand(m, x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1), qkv()
    ),
    "zero rows of padding": lambda: plain(
        lambda m, x: (m.table(x), act_of(m, m.table(x))), {"table": zero_row(), **feed_forward(nn.ReLU())}, ids()
    ),
    "an output that is always zero": lambda: plain(
        lambda m, x: (by_hand(m, x), torch.relu(-torch.relu(m.qkv(x)))), qkv()
    ),
    "a scalar": lambda: plain(lambda m, x: by_hand(m, x).mean(), qkv()),
    "a scalar among others": lambda: plain(
        lambda m, x: {"y": by_hand(m, x), "loss": by_hand(m, x).square().mean()}, qkv()
    ),
    "several outputs": lambda: plain(lambda m, x: {"y": by_hand(m, x), "top": by_hand(m, x).argmax(-1)}, qkv()),
    "an unused pooler": lambda: plain(
        lambda m, x: (by_hand(m, x), torch.tanh(m.pool(x[:, 0])))[0], {**qkv(), "pool": nn.Linear(D, D)}
    ),
    "an unused module": lambda: plain(
        lambda m, x: (by_hand(m, x), act_of(m, x))[0], {**qkv(), **feed_forward(nn.GELU())}
    ),
    "an unused attention": lambda: plain(
        lambda m, x: (sdpa(m, x), act_of(m, x))[1], {**qkv(), **feed_forward(nn.GELU())}
    ),
    "unused parameters": lambda: plain(by_hand, {**qkv(), "left": nn.Parameter(torch.randn(3, 3))}),
    "buffers": lambda: plain(
        lambda m, x: by_hand(m, x * m.scale + m.shift), {**qkv(), "scale": torch.rand(D), "shift": torch.rand(1)}
    ),
    "half precision": lambda: plain(by_hand, {"qkv": nn.Linear(D, 3 * D).half()}),
    "double precision": lambda: plain(by_hand, {"qkv": nn.Linear(D, 3 * D).double()}),
    "tied weights": lambda: plain(
        lambda m, x: F.linear(act_of(m, m.table(x)), m.table.weight),
        {"table": nn.Embedding(30, D), **feed_forward(nn.SiLU())},
        ids(),
    ),
    "one layer twice": lambda: plain(lambda m, x: act_of(m, act_of(m, x)), feed_forward(nn.GELU())),
    "a gate": lambda: plain(lambda m, x: m.down(F.silu(m.up(x)) * m.up(x)), feed_forward(nn.Identity())),
    "a convolution in front": lambda: plain(convolved, {**qkv(), "conv": nn.Conv1d(D, D, 3, padding=1)}),
    "a batch norm": lambda: plain(
        lambda m, x: act_of(m, m.norm(x.transpose(1, 2)).transpose(1, 2)),
        {"norm": nn.BatchNorm1d(D), **feed_forward(nn.ELU())},
    ),
    "a group norm": lambda: plain(
        lambda m, x: act_of(m, m.norm(x.transpose(1, 2)).transpose(1, 2)),
        {"norm": nn.GroupNorm(4, D), **feed_forward(nn.Mish())},
    ),
    "an RMS norm": lambda: plain(
        lambda m, x: act_of(m, m.norm(x)), {"norm": nn.RMSNorm(D), **feed_forward(nn.Hardswish())}
    ),
    "a PReLU": lambda: plain(act_of, feed_forward(nn.PReLU())),
    "works in place": lambda: plain(act_of, feed_forward(nn.ReLU(inplace=True))),
    "log softmax": lambda: plain(lambda m, x: F.log_softmax(act_of(m, x), -1), feed_forward(nn.Tanh())),
    "a residual of constants": lambda: plain(lambda m, x: act_of(m, x) + torch.ones(D) * 3, feed_forward(nn.Sigmoid())),
    "cross attention": lambda: plain(
        lambda m, x: m.mha(m.query.expand(x.size(0), -1, -1), x, x)[0],
        {"mha": nn.MultiheadAttention(D, 2, batch_first=True), "query": nn.Parameter(torch.randn(1, 3, D))},
    ),
    "a class token": lambda: plain(
        lambda m, x: by_hand(m, torch.cat([m.token.expand(x.size(0), -1, -1), x], 1))[:, 0],
        {**qkv(), "token": nn.Parameter(torch.randn(1, 1, D))},
    ),
}
