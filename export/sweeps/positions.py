"""Sweeps of positions: sinusoidal tables, rotary angles with every scaling, relative buckets and ALiBi, float32.

Shapes: B batch, S query length, T key length, N heads, H head size, D model size.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tfm.model import Alibi, Embedding, RelativeBias, Rotary, RotaryScaling, Scaling, TransformerConfig, rotate
from tfm.ops import oracles

from ..graphs import Value
from .subjects import Case, Check, OpGraph, Source, limits_of

NAMES = ("sinusoidal", "rotary", "relative", "alibi")

_TRAINED, _LONGEST = 512, 2048
"""Positions that a scaling stretches from and to."""

# T5's buckets end at a distance of 128.
_FAR = 300
"""Distance up to which biases are compared, beyond the last bucket's beginning."""

_HEAD = 64


def _stretched(kind: Scaling) -> RotaryScaling:
    pairs = range(_HEAD // 2)
    told: dict[str, Any] = {
        "short_factors": tuple(1.0 + 0.01 * i for i in pairs),
        "long_factors": tuple(1.0 + 0.3 * i for i in pairs),
    }
    factors = told if kind == "longrope" else {}
    return RotaryScaling(kind=kind, factor=4.0, original_max_positions=_TRAINED, **factors)


ROTARY: dict[str, dict[str, Any]] = {
    "plain": {},
    "16 of 64 entries": {"rotary_dim": 16},
    **{kind: {"rotary_scaling": _stretched(kind)} for kind in get_args(Scaling)},
}
"""Options of the rotary forms."""

_RELATIVE = {"both ways": False, "causal": True}


class _Rotated(nn.Module):
    """Queries as rotary positions turn them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.rotary, self.nhead = Rotary(config), config.nhead

    def forward(self, x_BSD: Tensor, position_ids_BS: Tensor) -> Tensor:
        return rotate(x_BSD, *self.rotary(position_ids_BS), self.nhead)


def subjects(name: str) -> list[Source]:
    """List the sweeps of one kind of positions."""
    forms: dict[str, tuple[Callable[[], OpGraph], Callable[[OpGraph, str], Iterator[Case]]]] = {}
    if name == "sinusoidal":
        for size in (16, 512):
            forms[f"{size} entries"] = functools.partial(_sinusoidal, size), _sinusoidal_cases
    elif name == "rotary":
        for form in ROTARY:
            config = _config(d_model=2 * _HEAD, nhead=2, positions="rotary", **ROTARY[form])
            forms[form] = functools.partial(_rotary, config), functools.partial(_rotary_cases, form, config)
    elif name == "relative":
        for form, causal in _RELATIVE.items():
            module = functools.partial(RelativeBias, _config(d_model=6, nhead=3, positions="relative"), causal=causal)
            forms[form] = functools.partial(_bias, module, 3), functools.partial(_relative_cases, form)
    else:
        # Slopes of a power of 2 and of another number of heads follow two rules.
        for heads in (8, 6):
            forms[f"{heads} heads"] = functools.partial(_bias, functools.partial(Alibi, heads), heads), _alibi_cases
    return [
        Source(group="positions", op=name, tolerances=limits_of(name), title=f"{name}, {form}", make=make, cases=cases)
        for form, (make, cases) in forms.items()
    ]


def _config(**options: Any) -> TransformerConfig:
    return TransformerConfig(kind="decoder", vocab_size=1, max_positions=_LONGEST, **options)


def _sinusoidal(size: int) -> OpGraph:
    """An embedding of tokens that are zero, so that positions are left."""
    module = Embedding(_config(d_model=size, nhead=1), vocab_size=1)
    nn.init.zeros_(module.token.weight)

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        del generator, past
        return [torch.zeros(batch, length, dtype=torch.int64), torch.arange(length).repeat(batch, 1)]

    inputs = tuple(Value(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("ids", "position_ids"))
    output = Value(name="y", dtype="float32", shape=("batch", "sequence", size))
    return OpGraph(module, inputs, (output,), draw)


def _sinusoidal_cases(graph: OpGraph, dtype: str) -> Iterator[Case]:
    del dtype
    size = int(graph.outputs[0].shape[-1])
    position = np.arange(_LONGEST)[None]
    table = oracles.sinusoidal(_LONGEST, size)[None]
    check = Check(form=f"{size} entries", output="y", expected=table, where=f"positions below {_LONGEST}")
    yield Case(feeds=(np.zeros_like(position), position), checks=(check,))


def _rotary(config: TransformerConfig) -> OpGraph:
    shape = ("batch", "sequence", config.nhead * config.head_size)

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        del past
        x_BSD = torch.randn(batch, length, config.nhead * config.head_size, generator=generator)
        return [x_BSD, torch.arange(length).repeat(batch, 1)]

    positions = Value(name="position_ids", dtype="int64", shape=("batch", "sequence"))
    x, y = (Value(name=name, dtype="float32", shape=shape) for name in ("x", "y"))
    return OpGraph(_Rotated(config), (x, positions), (y,), draw)


def _rotary_cases(form: str, config: TransformerConfig, graph: OpGraph, dtype: str) -> Iterator[Case]:
    """From the start, one token behind a long past, and up to the greatest length."""
    del graph, dtype
    random = np.random.default_rng(0)
    for positions in (np.arange(7), np.array([300]), np.arange(0, _LONGEST, 13), np.array([_LONGEST - 1])):
        place_BS = np.stack([positions, np.maximum(positions - 3, 0)])  # the second row is padded on the left
        x = random.standard_normal((2, config.nhead, len(positions), config.head_size), dtype=np.float32)
        angle_BSI, magnitude = oracles.rotary_angles(
            place_BS, config.rotary_size, config.rotary_base, config.rotary_scaling
        )
        y = oracles.rotate(x.astype(np.float64), angle_BSI, magnitude)
        # θ and p · θ are rounded relative to themselves, so the error grows with the angle. Both
        # halves of a head are turned by the same angles; the rest, if any, is copied.
        unit_BSI = 1.0 + angle_BSI
        rest = np.ones((*place_BS.shape, config.head_size - config.rotary_size))
        unit = np.concatenate([unit_BSI, unit_BSI, rest], axis=-1)[:, None] * np.abs(x).max()
        where = f"position {positions[-1]}" if len(positions) == 1 else f"positions to {positions[-1]}"
        # The graph has heads side by side.
        x, y, unit = (_merge(array) for array in (x, y, np.broadcast_to(unit, y.shape)))
        yield Case(feeds=(x, place_BS), checks=(Check(form=form, output="y", expected=y, unit=unit, where=where),))


def _merge(y_BNSH: Any) -> Any:
    """(B, N, S, H) → (B, S, N·H)."""
    batch, count, length, size = y_BNSH.shape
    return y_BNSH.transpose(0, 2, 1, 3).reshape(batch, length, count * size)


def _bias(make: Callable[[], nn.Module], heads: int) -> OpGraph:
    """A bias on scores, of the positions of queries and keys; its weights are the same each time."""
    module, generator = make(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        del generator
        return [(torch.arange(length) + past).repeat(batch, 1), torch.arange(length + past)]

    query = Value(name="query", dtype="int64", shape=("batch", "sequence"))
    key = Value(name="key", dtype="int64", shape=("total",))
    output = Value(name="y", dtype="float32", shape=("batch", heads, "sequence", "total"))
    return OpGraph(module, (query, key), (output,), draw)


def _relative_cases(form: str, graph: OpGraph, dtype: str) -> Iterator[Case]:
    del dtype
    bias = graph.model
    table = bias.weight.detach().double().numpy()
    for query, key in _positions():
        bucket_ST = [
            [oracles.relative_bucket(int(k - q), bias.buckets, bias.max_distance, causal=_RELATIVE[form]) for k in key]
            for q in query
        ]
        # (S, T, N) → (1, N, S, T).
        y = table[np.array(bucket_ST)].transpose(2, 0, 1)[None]
        check = Check(form=form, output="y", expected=y, where=f"S={len(query)}, T={len(key)}")
        yield Case(feeds=(query[None], key), checks=(check,))


def _alibi_cases(graph: OpGraph, dtype: str) -> Iterator[Case]:
    del dtype
    heads = int(graph.outputs[0].shape[1])
    for query, key in _positions():
        y = oracles.alibi(query, key, heads)
        check = Check(form=f"{heads} heads", output="y", expected=y, where=f"S={len(query)}, T={len(key)}")
        yield Case(feeds=(query[None], key), checks=(check,))


def _positions() -> Iterator[tuple[Any, Any]]:
    """Positions of queries and keys: a square, one token behind a past, and every distance up to the farthest."""
    yield np.arange(9), np.arange(9)
    yield np.array([7]), np.arange(8)
    yield np.array([_FAR]), np.arange(2 * _FAR + 1)
