"""Sweeps of activations, plain and gated, over the whole domain of float32 and float16.

An exported float16 graph is the float32 one with its types changed. onnxruntime 1.32's CPU provider has a float16
kernel for none of these ops: it puts Casts around them, breaks gelu, hardswish and, at the lower levels,
quick-gelu into smaller ops, and computes all of it in float32. So a float16 result is the float32 one, rounded once.
Eager PyTorch, which rounds between the ops of composites, is measured on float16 tensors.

Units in the last place are counted where |f(x)| is at least 0.1: below, in the left tail, a result is what is left of
terms that cancel.
"""

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tfm.model import FeedForward, TransformerConfig
from tfm.ops import evaluate_activation, is_gated

from ..graphs import Value
from .subjects import Array, Case, Check, OpGraph, Source, limits_of

_VALUES = (1.0, -1.0, 0.5, -3.0, 0.0)
"""What a gated activation multiplies the activated gate by, in turns."""


def subjects(name: str, dtypes: tuple[str, ...]) -> list[Source]:
    """List the sweep of one activation."""
    return [
        Source(
            group="activations",
            op=name,
            tolerances=limits_of("activation"),
            title=name,
            dtypes=dtypes,
            make=functools.partial(make_graph, name),
            # The ends by themselves too: 11 numbers are no multiple of a vector's length, so that
            # the kernels' code for what is left over computes some of them.
            cases=lambda graph, dtype: iter([_case(name, grid(dtype)), _case(name, edges(dtype))]),
        )
    ]


def make_graph(name: str) -> OpGraph:
    """Put an activation into its feed-forward block, whose projections change nothing: x (count, 1 or 2) → y (count,).

    The second of them reshapes, since passes look at what stands behind an activation.
    """
    # The model's own block, so that a gated activation is exported as it is in a model: split, σ
    # and product.
    config = TransformerConfig(vocab_size=1, d_model=1, nhead=1, dim_feedforward=1, positions="none", activation=name)
    block = FeedForward(config)
    # The first projection is nothing, the second a Flatten, (count, 1) → (count,).
    block.linear1 = nn.Identity()  # type: ignore[assignment]
    block.linear2 = nn.Flatten(0)  # type: ignore[assignment]
    width = 2 if block.gated else 1

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        return [torch.randn(batch + length + past, width, generator=generator)]

    x = Value(name="x", dtype="float32", shape=("count", width))
    return OpGraph(block, (x,), (Value(name="y", dtype="float32", shape=("count",)),), draw)


def grid(dtype: str) -> Array:
    """Every float16 there is; of float32 a dense grid, both tails, subnormals, extremes, ±0, ±inf and NaN.

    Returns:
        Array (count,) of that dtype.
    """
    if dtype == "float16":
        return np.arange(2**16, dtype=np.uint16).view(np.float16)
    info = np.finfo(np.float32)
    decades = np.geomspace(float(info.smallest_subnormal), float(info.max), 4001)
    # Where activations bend; where exponentials over- and underflow (e⁸⁸ and e⁻¹⁰³ in float32); and
    # every decade of magnitudes, of both signs.
    parts = [np.linspace(-20.0, 20.0, 40001), np.linspace(-150.0, 150.0, 6001), decades, -decades, edges(dtype)]
    with np.errstate(over="ignore"):  # geomspace may end a rounding past the last float32
        return np.concatenate(parts).astype(np.float32)


def edges(dtype: str) -> Array:
    """The ends of a dtype, which are fed by themselves too: kernels compute what fills no vector by other code.

    Returns:
        Array (11,) of that dtype.
    """
    info = np.finfo(np.dtype(dtype))
    positive = [info.smallest_subnormal, info.tiny, info.max, np.inf]
    return np.array([*positive, *(-x for x in positive), 0.0, -0.0, np.nan], dtype=dtype)


def inputs(name: str, x: Array) -> Array:
    """What the graph takes to evaluate x: (count, 1), or (count, 2) with a value for each gate."""
    if not is_gated(name):
        return x[:, None]
    # (count, 2): the value, and the gate x.
    return np.stack([np.resize(np.array(_VALUES, dtype=x.dtype), x.shape), x], axis=1)


def exact(name: str, x: Array) -> npt.NDArray[np.float64]:
    """Evaluate the oracle: of a gated activation, the activated gate."""
    return evaluate_activation(name, x.astype(np.float64))


def _case(name: str, x: Array) -> Case:
    y = exact(name, x)
    # Errors grow with |x|, which the σ of most activations is multiplied by; at infinity it would
    # leave no limit.
    unit = np.where(np.isfinite(x), np.maximum(np.abs(x.astype(np.float64)), 1.0), 1.0)
    if is_gated(name):
        value = np.resize(_VALUES, x.shape)
        unit *= np.maximum(np.abs(value), 1.0)
        with np.errstate(invalid="ignore"):  # 0 · inf
            y = y * value
    check = Check(form="", output="y", expected=y, unit=unit, where=x)
    return Case(feeds=(inputs(name, x),), checks=(check,))
